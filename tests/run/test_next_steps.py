"""What a run says can be done with its model: commands that fit the family."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_runs

from ffprune_env.lm.tiny_families import byte_tokenizer, tiny_of_family
from ffprune_env.modeling.families import FAMILIES, pruned_names
from ffprune_env.run.next_steps import WITHOUT_PLUGIN, next_steps, serving

FOLDER, GGUF = Path("runs/x/model"), Path("runs/x/model.gguf")


@pytest.mark.parametrize(
    ("family", "command"),
    [
        ("llama", f"ffprune export-gguf {FOLDER} {GGUF}"),
        ("opt", f"vllm serve {FOLDER}  (with ffprune-vllm)"),
        ("olmo2", f"vllm serve {FOLDER} --trust-remote-code"),
    ],
)
def test_a_model_is_served_by_what_takes_its_family(family, command):
    model = tiny_of_family(family)
    assert serving(model, FOLDER, GGUF, written=False) == command
    assert serving(model, FOLDER, GGUF, written=True) == f"llama-server -m {GGUF}"


def test_the_plugin_has_a_class_for_all_families_that_are_not_served_by_their_code(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "ffprune-vllm"))
    plugin = pytest.importorskip("ffprune_vllm")
    lacks = {family for family in FAMILIES if pruned_names(family)["AutoModelForCausalLM"] not in plugin.FAMILIES}
    assert lacks == set(WITHOUT_PLUGIN)


@pytest.mark.parametrize(("family", "how"), [("opt", "  (with ffprune-vllm)"), ("olmo2", " --trust-remote-code")])
def test_a_run_prints_it(family, how, ppo_script, text_file, tmp_path):
    model = tiny_of_family(family)
    model.save_pretrained(tmp_path / family)
    byte_tokenizer().save_pretrained(tmp_path / family)
    run = tmp_path / "run"
    flags = tiny_runs.settings(tmp_path / family, text_file, run, evaluations=0, init="ffn-only")
    with ppo_script.console.capture() as said:
        assert tiny_runs.run_main(ppo_script, [*flags, "--no-baselines", "--calibration", "ridge"]) == 0
    assert f"serve it:    vllm serve {run / 'model'}{how}" in said.get()
    assert "export-gguf" not in said.get()


def test_steps_name_the_text_that_was_tested_on_and_the_dense_model():
    about = {"model": "opt-125m", "text": "a.txt", "test_text": "b.txt"}
    steps = next_steps(Path("runs/x"), about, "cmd", recoverable=True)
    assert [step.partition(":")[0] for step in steps] == ["measure it", "time it", "serve it", "load it", "train it"]
    assert steps[0].endswith(f"ffprune perplexity {FOLDER} --text b.txt --split all")
    assert steps[1].endswith(f"ffprune bench-serving {FOLDER} --dense opt-125m")
    assert next_steps(Path("runs/x"), about, "cmd", recoverable=False) == steps[:-1]
