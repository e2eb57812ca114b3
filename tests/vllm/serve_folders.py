"""Run by the Python that has vLLM: greedy tokens of some folders, with their log-probabilities, as JSON.

python serve_folders.py '{"folders": {"a": false}, "prompts": [[5, 6]], "new_tokens": 8, "eager": true}' out.json

With each folder comes whether its own code is trusted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# One process is enough for tiny models, and its errors are seen.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def served(folder, trusted, prompts, new_tokens, eager):
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=eager,
        trust_remote_code=trusted,
        max_model_len=128,
        max_num_seqs=4,
        distributed_executor_backend="uni",
    )
    sampling = SamplingParams(
        temperature=0, max_tokens=new_tokens, min_tokens=new_tokens, logprobs=0, detokenize=False, ignore_eos=True
    )
    answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling)
    outputs = [answer.outputs[0] for answer in answers]
    return [
        {
            "tokens": list(output.token_ids),
            "logprobs": [at[token].logprob for at, token in zip(output.logprobs, output.token_ids, strict=True)],
        }
        for output in outputs
    ]


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    folders = job.pop("folders")
    answers = {folder: served(folder, trusted, **job) for folder, trusted in folders.items()}
    Path(sys.argv[2]).write_text(json.dumps(answers))
