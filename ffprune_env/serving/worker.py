"""A process that serves one model and times what it is told to.

For llama.cpp and vLLM it needs nothing of ffprune, so that a Python without it runs it.

    python worker.py llama.cpp model.gguf '{"prompt": 512, "new_tokens": 64, "batches": [1, 8], "threads": 2}'

It reads ``prefill 8``, ``decode 1`` or ``memory`` from standard input, a line each, and answers by a line of JSON. The
last says under ``died`` why it cannot go on, if it cannot.

A prefill is the time that prompts take to be read. A decode is the time of what is written behind short ones, a step of
the model for every token, whatever serves it: that of the prompts, and of the token that comes of them, does not count.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

SHORT = 16  # tokens of the prompt that a decode follows
# Bytes of the cache in vLLM, which would take what is left of a GPU: then a second process has no room, and how many
# tokens fit says nothing of the model.
VLLM_CACHE = 2**30
# Characters of a refusal: vLLM repeats all that it was given behind it.
_REASON = 300
# How often an answer and the beginning of one are timed until the longer one took longer.
_TRIES = 5


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        prompt: tokens of every sequence in a prefill.
        new_tokens: tokens of every sequence in a decode, after a prompt of 16 and the token that comes of it.
        batches: sequences at once, ascending.
        threads: of the CPU.
        device: ``cpu``, ``cuda``, ...; llama.cpp runs on the CPU.
        trust_remote_code: code that a folder brings along may be run.
    """

    prompt: int
    new_tokens: int
    batches: list[int]
    threads: int
    device: str = "cpu"
    trust_remote_code: bool = False

    @property
    def longest(self) -> int:
        """Tokens that a sequence may have."""
        return max(self.prompt + 1, SHORT + 1 + self.new_tokens, 2 * SHORT)  # the last for memory()


class Model(Protocol):
    """A model of one server."""

    def prefill(self, batch: int) -> None:
        """Reads so many prompts."""

    def decode(self, batch: int) -> dict[str, float]:
        """Writes so many answers; returns what all tokens but the first took, as :func:`timed` does."""
        ...

    def memory(self) -> dict[str, float | None]:
        """Bytes of ``weights``, and of the ``cache`` for one token; None where the server does not tell."""
        ...


class InTransformers:
    """A folder in transformers.

    Args:
        source: the folder.
        job: what is asked for.
    """

    def __init__(self, source: str, job: Job) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        import ffprune_env

        ffprune_env.register_auto_classes()
        torch.set_num_threads(job.threads)
        self.torch, self.job = torch, job
        # Left out, transformers asks, and reads the answer from where we are told what to do.
        code = {"trust_remote_code": job.trust_remote_code}
        self.model: Any = AutoModelForCausalLM.from_pretrained(source, device_map={"": job.device}, **code).eval()

    def prefill(self, batch: int) -> None:
        """Reads so many prompts."""
        with self.torch.inference_mode():
            self.model(self._tokens(batch, self.job.prompt), use_cache=True, logits_to_keep=1)
        self._wait()

    def decode(self, batch: int) -> dict[str, float]:
        """Writes so many answers; returns what all tokens but the first took."""
        tokens = self._tokens(batch, SHORT)
        return behind_the_first(lambda n: self._generate(tokens, n), self.job.new_tokens)

    def memory(self) -> dict[str, float | None]:
        """Bytes of weights, and of the cache for one token."""
        with self.torch.inference_mode():
            cache = self.model(self._tokens(1, 1), use_cache=True, logits_to_keep=1).past_key_values
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return {"weights": weights, "cache": bytes_of_cache(cache)}

    def _generate(self, tokens: Any, n: int) -> None:
        mask = self.torch.ones_like(tokens)
        with self.torch.inference_mode():
            self.model.generate(tokens, attention_mask=mask, min_new_tokens=n, max_new_tokens=n, do_sample=False)
        self._wait()

    def _tokens(self, batch: int, n: int) -> Any:
        vocabulary = self.model.config.get_text_config().vocab_size
        return self.torch.tensor(tokens_of(batch, n, vocabulary), device=self.job.device)

    def _wait(self) -> None:
        if self.job.device.startswith("cuda"):
            self.torch.cuda.synchronize(self.job.device)


class InLlamaCpp:
    """A GGUF file in llama.cpp, on the CPU.

    Args:
        source: the file.
        job: what is asked for.
    """

    def __init__(self, source: str, job: Job) -> None:
        from cyllama.llama import llama_cpp

        llama_cpp.disable_logging()
        self.llama_cpp, self.job = llama_cpp, job
        of_model, of_context = llama_cpp.LlamaModelParams(), llama_cpp.LlamaContextParams()
        of_model.n_gpu_layers = 0
        sequences = job.batches[-1]
        of_context.n_seq_max, of_context.n_ctx = sequences, sequences * (job.longest + SHORT)
        of_context.n_batch = sequences * job.longest
        of_context.n_threads = of_context.n_threads_batch = job.threads
        self.model = llama_cpp.LlamaModel(source, of_model)
        self.context = llama_cpp.LlamaContext(self.model, of_context)
        self.vocabulary = int(self.model.get_vocab().n_vocab)

    def prefill(self, batch: int) -> None:
        """Reads so many prompts."""
        self._read(tokens_of(batch, self.job.prompt, self.vocabulary))

    def decode(self, batch: int) -> dict[str, float]:
        """Writes so many answers, of tokens that are not looked at: which they are makes no difference.

        Returns:
            What all tokens but the first took, which is there when the prompts are read.
        """
        self._read(tokens_of(batch, SHORT, self.vocabulary))
        return timed(lambda: self._write(batch))

    def memory(self) -> dict[str, float | None]:
        """Bytes of weights, and of the cache for one token."""
        self._read(tokens_of(1, SHORT, self.vocabulary))
        short = self.context.get_state_seq_size(0)
        self._read(tokens_of(1, 2 * SHORT, self.vocabulary))
        return {"weights": float(self.model.size), "cache": (self.context.get_state_seq_size(0) - short) / SHORT}

    def _write(self, batch: int) -> None:
        for i in range(self.job.new_tokens):
            self._decode([(1 + i, SHORT + i, sequence, True) for sequence in range(batch)])

    def _read(self, prompts: list[list[int]]) -> None:
        self.context.kv_cache_clear()
        last = len(prompts[0]) - 1
        self._decode(
            [(t, place, i, place == last) for i, prompt in enumerate(prompts) for place, t in enumerate(prompt)]
        )

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        batch = self.llama_cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        for token, place, sequence, wanted in tokens:
            batch.add(token, place, [sequence], wanted)
        self.context.decode(batch)
        self.context.synchronize()


class InVllm:
    """A folder in vLLM, compiled, in this process.

    Args:
        source: the folder.
        job: what is asked for.
    """

    def __init__(self, source: str, job: Job) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        kind, _, index = job.device.partition(":")
        if index:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible_alone(int(index), os.environ.get("CUDA_VISIBLE_DEVICES"))
        from vllm import LLM, SamplingParams
        from vllm.platforms import current_platform

        if current_platform.device_type != kind:
            raise ValueError(
                f"this vLLM is a build for {current_platform.device_type}, and {job.device} was asked for: "
                f"give another --device, or --vllm-python with a build for it"
            )
        self.job, self.sampling = job, SamplingParams
        self.llm = LLM(
            source,
            dtype=stored_dtype(source),  # its own choice would round float32
            skip_tokenizer_init=True,
            max_model_len=job.longest,
            max_num_seqs=job.batches[-1],
            max_num_batched_tokens=max(2048, job.longest),
            enable_prefix_caching=False,
            distributed_executor_backend="uni",
            disable_log_stats=True,
            kv_cache_memory_bytes=VLLM_CACHE,
            # With a cache of that size it says no more than how much of a GPU must be free at the start.
            gpu_memory_utilization=0.01,
            trust_remote_code=job.trust_remote_code,
        )
        self.vocabulary = self.llm.llm_engine.model_config.get_vocab_size()

    def prefill(self, batch: int) -> None:
        """Reads so many prompts, and writes a token after each."""
        self._generate(tokens_of(batch, self.job.prompt, self.vocabulary), 1)

    def decode(self, batch: int) -> dict[str, float]:
        """Writes so many answers; returns what all tokens but the first took."""
        prompts = tokens_of(batch, SHORT, self.vocabulary)
        return behind_the_first(lambda n: self._generate(prompts, n), self.job.new_tokens)

    def memory(self) -> dict[str, float | None]:
        """Bytes of weights, and of the cache for one token."""
        cache = self.llm.llm_engine.vllm_config.cache_config
        weights = self.llm.apply_model(bytes_of)[0]
        tokens = cache.num_gpu_blocks * cache.block_size
        # On a CPU VLLM_CPU_KVCACHE_SPACE may have made it another one.
        return {"weights": float(weights), "cache": cache.kv_cache_memory_bytes / tokens}

    def _generate(self, prompts: list[list[int]], n: int) -> None:
        sampling = self.sampling(temperature=0, max_tokens=n, min_tokens=n, ignore_eos=True, detokenize=False)
        self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)


def visible_alone(index: int, visible: str | None) -> str:
    """What ``CUDA_VISIBLE_DEVICES`` has to be for one GPU alone to be seen, of those that are seen now.

    Args:
        index: of the GPU among them, as torch counts.
        visible: what the variable is now: numbers or UUIDs; None where it is not set, and all GPUs are seen.

    Raises:
        ValueError: fewer are seen.
    """
    if visible is None:
        return str(index)
    entries = [entry.strip() for entry in visible.split(",") if entry.strip()]
    if index >= len(entries):
        allowed = f"cuda:0 to cuda:{len(entries) - 1}" if entries else "none"
        raise ValueError(f"there is no cuda:{index} with CUDA_VISIBLE_DEVICES={visible}: allowed are {allowed}")
    return entries[index]


def stored_dtype(folder: str) -> str:
    """The number format that the config of a folder names; ``auto`` if it names none."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


BACKENDS: dict[str, Any] = {"transformers": InTransformers, "llama.cpp": InLlamaCpp, "vllm": InVllm}


def bytes_of_cache(cache: Any) -> int | None:
    """Bytes that a cache of transformers holds; None of one that keeps something else than keys and values by layer.

    A layer without an attention holds nothing, or a number that marks each token.
    """
    layers = getattr(cache, "layers", None)
    if layers is None or not all(hasattr(layer, "keys") and hasattr(layer, "values") for layer in layers):
        return None
    held = [x for layer in layers for x in (layer.keys, layer.values) if x is not None]
    return sum(int(x.numel() * x.element_size()) for x in held)


def bytes_of(model: Any) -> int:
    """Bytes of the weights of a model in vLLM; on a CPU it keeps those of projections elsewhere than in parameters."""
    total, seen = 0, set()
    size = max(parameter.element_size() for parameter in model.parameters())
    for module in model.modules():
        if hasattr(module, "output_size_per_partition"):
            total += module.input_size_per_partition * module.output_size_per_partition * size
            names = [name for name in module._parameters if name != "weight"]
        else:
            names = list(module._parameters)
        own = [module._parameters[name] for name in names if module._parameters[name] is not None]
        total += sum(parameter.numel() * size for parameter in own if id(parameter) not in seen)
        seen |= {id(parameter) for parameter in own}
    return total


def tokens_of(batch: int, n: int, vocabulary: int) -> list[list[int]]:
    """Prompts of n tokens that all begin otherwise, so that no server finds one in another."""
    return [[(1 + i + 7 * row) % vocabulary for i in range(n)] for row in range(batch)]


def main() -> None:
    """Serves until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to standard error
    os.dup2(2, 1)
    try:
        model: Model = BACKENDS[sys.argv[1]](sys.argv[2], Job(**json.loads(sys.argv[3])))
        for line in sys.stdin:
            print(json.dumps(answer_to(line, model)), file=answers, flush=True)
    except Exception as error:  # whatever a server raises is its refusal
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_REASON]
        print(json.dumps({"died": reason}), file=answers, flush=True)
        raise


def answer_to(line: str, model: Model) -> Mapping[str, float | None]:
    """What is answered to a line: bytes, or seconds by ``wall`` and by ``cpu``."""
    what, _, batch = line.strip().partition(" ")
    if what == "memory":
        return model.memory()
    if what == "decode":
        return model.decode(int(batch))
    return timed(lambda: model.prefill(int(batch)))


def timed(work: Callable[[], None]) -> dict[str, float]:
    """What something takes: seconds by ``wall`` and by ``cpu``, of all threads together."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def behind_the_first(answer: Callable[[int], None], new_tokens: int) -> dict[str, float]:
    """What the tokens of an answer take behind its first, of a server that does not say when it has read a prompt.

    An answer of one token is timed just before the whole one, and taken off.

    Args:
        answer: writes so many tokens to a prompt.
        new_tokens: tokens behind the first.

    Raises:
        ValueError: the clock says each time that they took nothing.
    """
    for _ in range(_TRIES):
        first, whole = timed(lambda: answer(1)), timed(lambda: answer(1 + new_tokens))
        took = {clock: whole[clock] - first[clock] for clock in whole}
        if min(took.values()) > 0:
            return took
    raise ValueError(
        f"an answer of {1 + new_tokens} tokens took no longer than one of 1, {_TRIES} times: ask for more "
        f"--new-tokens, or measure where the machine is quieter"
    )


if __name__ == "__main__":
    main()
