"""A process that says what vLLM answers by some folders: greedy tokens, with their log-probabilities.

It needs nothing of ffprune, so that the Python that has vLLM runs it:

    python answers.py '{"folders": ["a"], "prompts": [[5, 6]], "new_tokens": 8, "eager": true}' out.json

Into the file it writes, by folder, an answer to each prompt, or the line in which vLLM refused.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# One process is enough for tiny models, and its errors are seen.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def answers(folder: str, prompts: list[list[int]], new_tokens: int, eager: bool) -> list[dict[str, Any]]:
    """Tokens and log-probabilities that follow each prompt.

    Args:
        folder: of a model in float32. The code in it runs if ffprune-vllm has no class for it: vLLM's own transformers
            backend may serve it then.
        prompts: tokens.
        new_tokens: how many follow each.
        eager: nothing is compiled.
    """
    from ffprune_vllm import FAMILIES
    from vllm import LLM, SamplingParams

    architecture = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    llm = LLM(
        folder,
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=eager,
        trust_remote_code=architecture not in FAMILIES,
        max_model_len=128,
        max_num_seqs=4,
        distributed_executor_backend="uni",
    )
    # Not by min_tokens, which forbids the token that ends a text.
    sampling = SamplingParams(temperature=0, max_tokens=new_tokens, logprobs=0, detokenize=False, ignore_eos=True)
    found = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling)
    outputs = [answer.outputs[0] for answer in found]
    return [
        {
            "tokens": list(output.token_ids),
            "logprobs": [at[token].logprob for at, token in zip(output.logprobs, output.token_ids, strict=True)],
        }
        for output in outputs
    ]


def answers_or_refusal(folder: str, **job: Any) -> list[dict[str, Any]] | str:
    """What a folder answers, or why it does not."""
    try:
        return answers(folder, **job)
    except Exception as error:  # whatever vLLM raises is its refusal
        return (" ".join(str(error).split()) or type(error).__name__)[:300]


if __name__ == "__main__":
    os.environ.update({**_ENVIRONMENT, **os.environ})
    job = json.loads(sys.argv[1])
    by_folder = {folder: answers_or_refusal(folder, **job) for folder in job.pop("folders")}
    Path(sys.argv[2]).write_text(json.dumps(by_folder), encoding="utf-8")
