"""The classes of transformers load a pruned model: with ffprune, and without it by the code in its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import byte_tokenizer
from pruned_models import PROMPT, WRITTEN, edit_config, logits, ranked
from transformers import AutoConfig

import ffprune_env as ff

FRESH = """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
tokens = torch.tensor([[5, 17, 23, 200, 3]])
for folder in sys.argv[1:]:
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"] == [64, 65, 66]
    assert len(AutoConfig.from_pretrained(folder).num_attention_heads_per_layer) == 3
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except RuntimeError as error:
        assert "ignore_mismatched_sizes" in str(error)
    else:
        raise AssertionError("the dense model took the weights of a smaller one")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        output = model(tokens, output_hidden_states=True)
        states = output.hidden_states[-1]
        for other in (base, classifier.base_model):
            torch.testing.assert_close(other(tokens).last_hidden_state, states, rtol=0, atol=1e-9)
    torch.save(output.logits, folder + ".logits")
    model.save_pretrained(folder + ".again")
assert not any(name.startswith("ffprune_env") for name in sys.modules), "ffprune_env was imported"
"""


def run_fresh(code, *arguments, cwd):
    """Runs Python code in a process of its own, outside the repository, with a standard input that says nothing."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    silent, open_end = os.pipe()
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, stdin=silent)
    finally:
        os.close(silent)
        os.close(open_end)


def test_a_process_without_ffprune_loads_it_and_saves_it_again(tmp_path):
    """Tokenizer and config need no code and ask nothing; the model without trust is refused, and with it is right."""
    expected = {}
    for family in WRITTEN:
        prunable, calibration, kept = ranked(family)
        ff.save_pruned(prunable, kept, tmp_path / family, byte_tokenizer(), calibration)
        with prunable.pruned(kept, calibration) as model:
            expected[tmp_path / family] = logits(model, PROMPT)
    done = run_fresh(FRESH, *expected, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "custom code" not in done.stdout
    for folder, wanted in expected.items():
        torch.testing.assert_close(torch.load(f"{folder}.logits"), wanted, rtol=0, atol=1e-9)
        torch.testing.assert_close(logits(ff.load_pruned(f"{folder}.again"), PROMPT), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", WRITTEN)
def test_the_file_names_the_dense_family_and_all_else_the_pruned_one(tmp_path, family):
    prunable, _, kept = ranked(family)
    ff.save_pruned(prunable, kept, tmp_path / "out", byte_tokenizer())
    file = tmp_path / "out" / "config.json"
    dense_family = prunable.model.config.model_type
    assert json.loads(file.read_text())["model_type"] == dense_family
    for _ in range(2):  # as it is written, and as older versions did
        assert AutoConfig.from_pretrained(tmp_path / "out").model_type == f"ffprune_{dense_family}"
        assert ff.load_pruned(tmp_path / "out").config.model_type == f"ffprune_{dense_family}"
        assert type(ff.load_model(str(tmp_path / "out"))[0]) is type(ff.load_pruned(tmp_path / "out"))
        edit_config(tmp_path / "out", model_type=f"ffprune_{dense_family}")


PLAIN = "import sys\nfrom transformers import AutoModelForCausalLM\nAutoModelForCausalLM.from_pretrained(sys.argv[1])"


@pytest.mark.parametrize(
    "first",
    [
        "import transformers, ffprune_env",
        "from transformers import LlamaModel\nimport ffprune_env",
        "import ffprune_env\nffprune_env.register_auto_classes()",
        "import ffprune_env, transformers\nffprune_env.PrunableModel",
        "import transformers, ffprune_env\nffprune_env.register_auto_classes()\nffprune_env.LMEvaluator",
    ],
    ids=["transformers-first", "models-first", "on-demand", "name-after", "twice"],
)
def test_auto_classes_load_it_once_they_know_it(tmp_path, first):
    prunable, _, kept = ranked("llama-gqa")
    ff.save_pruned(prunable, kept, tmp_path / "out")
    done = run_fresh(f"{first}\n{PLAIN}", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_loads_a_model_registers_the_pruned_families(tmp_path):
    prunable, _, kept = ranked("llama-gqa")
    ff.save_pruned(prunable, kept, tmp_path / "out", byte_tokenizer())
    for load in ("load_pruned(sys.argv[1])", "load_model(sys.argv[1], device='cpu')"):
        done = run_fresh(f"import sys, ffprune_env\nffprune_env.{load}\n{PLAIN}", tmp_path / "out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_importing_leaves_the_finders_of_modules_alone(tmp_path):
    code = "import sys\nbefore = list(sys.meta_path)\nimport ffprune_env\nassert sys.meta_path == before"
    assert run_fresh(code, cwd=tmp_path).returncode == 0
    code = f"import ffprune_env\n{PLAIN}"  # not registered: the dense architecture, whose sizes differ
    prunable, _, kept = ranked("llama-gqa")
    ff.save_pruned(prunable, kept, tmp_path / "out")
    assert "ignore_mismatched_sizes" in run_fresh(code, tmp_path / "out", cwd=tmp_path).stderr
