"""What llama.cpp makes of a GGUF file: losses, tokens, answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

_BATCH = 512


def require_llama_cpp(what: str) -> None:
    """Raises ValueError, with what to install, where llama.cpp is missing.

    Args:
        what: needs it.
    """
    if importlib.util.find_spec("cyllama") is None:
        raise ValueError(f"{what} needs llama.cpp: pip install cyllama")


class LlamaCpp:
    """A file, opened by llama.cpp on the CPU.

    Args:
        file: the file.
        context: tokens that a text may have.

    Raises:
        ValueError: llama.cpp is not installed, or cannot open the file.
    """

    def __init__(self, file: Path, context: int = 2048) -> None:
        require_llama_cpp("reading a GGUF file")
        from cyllama.llama import llama_cpp

        class Model(llama_cpp.LlamaModel):  # type: ignore[misc]
            """What reads logits asks the model for the size of the vocabulary, and cyllama 0.2.18 has it elsewhere."""

            @property
            def n_vocab(self) -> int:
                return int(self.get_vocab().n_vocab)

        self._file = file
        llama_cpp.disable_logging()
        model_settings, settings = llama_cpp.LlamaModelParams(), llama_cpp.LlamaContextParams()
        model_settings.n_gpu_layers = 0
        settings.n_ctx, settings.n_batch = context, min(context, _BATCH)
        settings.n_ubatch = settings.n_batch
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        try:
            self._model = Model(str(file), model_settings)
            self._context = llama_cpp.LlamaContext(self._model, settings)
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"llama.cpp cannot open {file}: {error}") from error
        self._batch: Any = llama_cpp.LlamaBatch(n_tokens=settings.n_batch, embd=0, n_seq_max=1)
        self._size, self._message = int(settings.n_batch), llama_cpp.LlamaChatMessage

    def losses(self, windows: torch.Tensor) -> torch.Tensor:
        """Mean loss of each window, float64 [n].

        Args:
            windows: tokens, int64 [n, seq_len]; no longer than the context.
        """
        return torch.stack([self._loss(window) for window in windows])

    def tokens(self, text: str, special: bool = False) -> list[int]:
        """The tokens of a text, without those that are put around it.

        Args:
            text: the text.
            special: whether words such as ``<|im_end|>`` are the tokens of that name.
        """
        return list(self._model.get_vocab().tokenize(text, False, special))

    @property
    def chat_template(self) -> str:
        """The template in the file; empty if there is none."""
        return str(self._model.get_default_chat_template() or "")

    def answer(self, question: str, n: int) -> str:
        """What the model answers, by the chat template in the file, the likeliest token first.

        Args:
            question: of the user.
            n: tokens of the answer at most.

        Raises:
            ValueError: llama.cpp does not know the template, or there is none.
        """
        try:
            prompt = self._model.chat_apply_template(self.chat_template, [self._message("user", question)], True)
        except RuntimeError as error:
            raise ValueError(
                f"llama.cpp knows the chat templates of common models only, and not the one in {self._file}: ask it "
                f"where templates are read as Jinja, such as in llama-server"
            ) from error
        vocab, tokens = self._model.get_vocab(), self.tokens(prompt, special=True)
        said: list[int] = []
        token = self._likeliest(tokens, 0)
        while len(said) < n and not vocab.is_eog(token):
            said.append(token)
            token = self._likeliest([token], len(tokens) + len(said) - 1)
        return str(vocab.detokenize(said))

    def logits(self, tokens: list[int], start: int = 0) -> torch.Tensor:
        """Logits after each token, float32 [n, vocabulary].

        Args:
            tokens: at most 512.
            start: how many tokens that were given before they follow.
        """
        self._decode(tokens, start)
        return torch.stack([torch.tensor(self._context.get_logits_ith(i)) for i in range(len(tokens))])

    def _loss(self, window: torch.Tensor) -> torch.Tensor:
        tokens, losses = window.tolist(), []
        for start in range(0, len(tokens), self._size):
            logits = self.logits(tokens[start : start + self._size], start)
            wanted = window[start + 1 : start + 1 + len(logits)]
            losses.append(F.cross_entropy(logits[: len(wanted)], wanted, reduction="none").double())
        return torch.cat(losses).mean()

    def _likeliest(self, tokens: list[int], start: int) -> int:
        """The token that most likely follows tokens, however many they are."""
        for begin in range(0, len(tokens), self._size):
            part = tokens[begin : begin + self._size]
            self._decode(part, start + begin)
        return int(torch.tensor(self._context.get_logits_ith(len(part) - 1)).argmax())

    def _decode(self, tokens: list[int], start: int) -> None:
        if start == 0:
            self._context.kv_cache_clear()
        self._batch.set_batch(tokens, start, True)
        self._context.decode(self._batch)
