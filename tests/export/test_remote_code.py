"""Code that a checkpoint brings along runs when the command line says so, and no file says it instead."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import yaml
from conftest import byte_tokenizer, load_script, tiny_model
from tiny_runs import run_main, settings

from ffprune_env.cli.settings import parse_settings

CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path({mark!r}).touch()

class MarkedConfig(LlamaConfig):
    model_type = "marked-llama"

class MarkedForCausalLM(LlamaForCausalLM):
    config_class = MarkedConfig
"""


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """A model that brings its code along, and the file that this code makes when it runs."""
    folder, mark = tmp_path_factory.mktemp("brought"), tmp_path_factory.mktemp("mark") / "it_ran"
    tiny_model("llama").float().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "marked.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    autos = {"AutoConfig": "marked.MarkedConfig", "AutoModelForCausalLM": "marked.MarkedForCausalLM"}
    changes = {"model_type": "marked-llama", "architectures": ["MarkedForCausalLM"], "auto_map": autos}
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder, mark


@pytest.fixture
def forgotten(brought, monkeypatch):
    """Makes transformers forget the code, as if it was in another process; returns whether it has run since."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    def forget():
        brought[1].unlink(missing_ok=True)
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            monkeypatch.delitem(sys.modules, name)
        extra = MODEL_FOR_CAUSAL_LM_MAPPING._extra_content
        for key in [key for key in extra if key.__name__ == "MarkedConfig"]:
            del extra[key]

    def ran():
        found = brought[1].exists()
        forget()
        return found

    forget()
    return ran


@pytest.fixture(scope="module")
def trusted_run(ppo_script, brought, text_file, tmp_path_factory):
    """A run that was told to trust the code."""
    run = tmp_path_factory.mktemp("trusted") / "run"
    flags = [*settings(brought[0], text_file, run), "--trust-remote-code", "--no-save-model"]
    assert run_main(ppo_script, flags) == 0
    assert brought[1].exists()
    return run


@pytest.fixture
def saved(trusted_run, tmp_path):
    """A copy of it, as earlier versions saved it: its config says that the code is trusted."""
    run = tmp_path / "run"
    shutil.copytree(trusted_run, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert "trust_remote_code" not in config
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"trust_remote_code": True}))
    return run


def words_of(reader, run, tmp_path):
    """The script that reads a saved run, and what follows its name."""
    other = tmp_path / "other.txt"
    other.write_text("\n".join(f"number {i} is not {i + 1}" for i in range(200)))
    test = ("--test-text", other, "--test-seq-len", 64, "--test-windows", 1)
    return {
        "resume": ("train/ppo.py", "--resume", run),
        "config": ("train/ppo.py", "--config", run / "config.yaml", "--run", tmp_path / "again"),
        "compare_runs": ("evaluate/compare_runs.py", run, *test),
        "reward_study": ("evaluate/reward_study.py", run, *test, "--rewarded-on", 1, "--policies", 3),
    }[reader]


@pytest.mark.parametrize("reader", ["resume", "config", "compare_runs", "reward_study"])
def test_whoever_reads_a_run_says_again_that_its_code_is_trusted(reader, saved, forgotten, tmp_path, capsys, caplog):
    script, *words = words_of(reader, saved, tmp_path)
    before = yaml.safe_load((saved / "config.yaml").read_text())
    assert run_main(load_script(script), words) == 2
    assert not forgotten()
    (line,) = capsys.readouterr().err.splitlines()
    assert "say --trust-remote-code" in line
    told = [message for message in caplog.messages if "it is not taken from there, give the flag" in message]
    assert len(told) == 1
    caplog.clear()
    assert run_main(load_script(script), [*words, "--trust-remote-code"]) == 0
    assert forgotten()
    assert not [message for message in caplog.messages if "it is not taken from there" in message]
    assert yaml.safe_load((saved / "config.yaml").read_text()) == before
    if reader == "config":
        assert "trust_remote_code" not in yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())


def test_code_in_a_pruned_folder_from_elsewhere_does_not_run(ppo_script, whole, text_file, tmp_path):
    """Neither its own three files, which are ours by name alone, nor a tokenizer of its own."""
    folder, mark = tmp_path / "model", tmp_path / "it_ran"
    shutil.copytree(whole / "model", folder)
    code = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n"
    for file in (*folder.glob("*.py"), folder / "evil.py"):
        file.write_text(code)
    settings_file = folder / "tokenizer_config.json"
    autos = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | autos))
    flags = [*settings(folder, text_file, tmp_path / "run"), "--no-save-model"]
    assert run_main(ppo_script, flags) == 0
    assert not mark.exists()


@pytest.mark.parametrize(
    "config",
    [
        {"trust_remote_code": True},
        {"trust-remote-code": True},
    ],
)
def test_nothing_that_a_config_holds_is_taken_for_trust(ppo_script, tmp_path, config):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    for flags in (["--config", str(tmp_path / "config.yaml")], ["--resume", str(tmp_path)]):
        assert not parse_settings(flags, ppo_script.Args, ppo_script.RUN_PRESETS).trust_remote_code
        for flag in ("--trust-remote-code", "--trust_remote_code"):
            assert parse_settings([*flags, flag], ppo_script.Args, ppo_script.RUN_PRESETS).trust_remote_code
