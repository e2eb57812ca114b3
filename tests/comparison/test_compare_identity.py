"""A folder of a comparison is of one model, one text, one order and one code; whatever does not fit is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
from conftest import byte_tokenizer, tiny_model
from plain import plain
from safetensors.torch import load_file, save_file

from ffprune_env.comparison import filling
from ffprune_env.comparison.folder import ComparisonFolder
from ffprune_env.comparison.measuring import load
from ffprune_env.comparison.plan import ANSWERING
from ffprune_env.comparison.questions import Questions
from ffprune_env.evaluators.zero_shot import score_tasks
from ffprune_env.evaluators.zero_shot_tasks import TASKS
from ffprune_env.lm.identity import ChangedError
from ffprune_env.methods.ppo import ppo
from ffprune_env.methods.registry import by_ppo
from ffprune_env.search.settings import SearchSettings


def test_a_folder_is_of_one_dtype_by_whichever_name_that_was_asked_for(compare):
    """What `auto` was is not what it is on the next machine: to go on there one says which it was."""
    assert compare("--methods", "uniform", dtype="auto")[0] == 0
    was = json.loads((compare.out / "manifest.json").read_text())["dtype"].removeprefix("torch.")
    other = "bfloat16" if was == "float32" else "float32"
    code, _, err = compare("--methods", "flap", dtype=other)
    assert code == 2
    assert f"was measured in {was}, not torch.{other}: give --dtype {was}" in err
    assert not (compare.out / "cells" / "flap-s20.json").exists()
    assert compare("--methods", "flap", dtype=was)[0] == 0
    assert (compare.out / "cells" / "flap-s20.json").exists()


def test_a_folder_is_of_one_model_one_text_and_one_code(compare, monkeypatch, tiny_folder, text_file, tmp_path):
    """Refused in one line, without a table, whether something is still to be measured or not; and nothing is lost."""
    model, text = tmp_path / "model", tmp_path / "words.txt"
    shutil.copytree(tiny_folder, model)
    shutil.copy(text_file, text)
    monkeypatch.setitem(compare.flags, "--model", model)
    monkeypatch.setitem(compare.flags, "--text", text)
    assert compare("--methods", "uniform")[0] == 0
    before = {path: path.read_bytes() for path in compare.out.rglob("*") if path.is_file()}
    identity = json.loads((compare.out / "identity.json").read_text())
    assert json.loads((compare.out / "cells" / "uniform-s20.json").read_text())["identity"] == identity

    def refused(says):
        for methods in (("uniform",), ("uniform", "flap")):
            code, out, err = compare("--methods", *methods)
            assert code == 2
            (line,) = err.splitlines()
            assert re.search(says, line), line
            assert "PPL" not in out
        assert {path: path.read_bytes() for path in compare.out.rglob("*") if path.is_file()} == before

    weights = load_file(model / "model.safetensors")
    changed = {**weights, "model.norm.weight": weights["model.norm.weight"] * 2}
    save_file(changed, model / "model.safetensors", metadata={"format": "pt"})
    refused(r"the weights of .*/model have changed since .*/out was begun: give another --out")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    words = text.read_text()
    text.write_text(words.replace("line 1 ", "row 1 "))
    refused(r"the text for [a-z ]+ .*/words.txt has changed since .*/out was begun: give another --out")
    before_test = int(0.68 * len(words))
    text.write_text(words[:before_test] + words[before_test:].upper())
    refused(r"the test text .*/words.txt has changed since")
    text.write_text(words)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["ffprune_env.lm.identity"], "source_digest", lambda package: "edited")
        code, _, err = compare("--methods", "uniform", "flap")
        assert (code, "the source of ffprune has changed since" in err) == (2, True)
        code, out, err = compare("--methods", "uniform")  # nothing is measured: what is there may be shown
        assert (code, err) == (0, "")
    (compare.out / "identity.json").unlink()
    code, out, err = compare("--methods", "uniform")
    assert code == 2
    assert "holds no identity.json" in err
    assert "PPL" not in out


def test_cells_that_are_added_are_of_the_order_that_was_there(compare, request):
    assert compare("--methods", "uniform", "ffn-only")[0] == 0
    file = compare.out / "cells" / "ffn-only-s20.json"
    before = json.loads(file.read_text())
    file.unlink()
    order = (compare.out / "order.json").read_bytes()
    request.getfixturevalue("other_scores")
    assert compare("--methods", "uniform", "ffn-only")[0] == 0
    untimed = {"seconds": 0, "calibration_seconds": 0}
    assert json.loads(file.read_text()) | untimed == before | untimed
    assert (compare.out / "order.json").read_bytes() == order
    with pytest.raises(ValueError, match=r"another process ranked the model otherwise for .*: give the command again"):
        ComparisonFolder(compare.out, json.loads((compare.out / "settings.json").read_text())).write("order.json", {})
    (compare.out / "order.json").unlink()
    code, out, err = compare("--methods", "uniform", "ffn-only", "flap")
    assert (code, "PPL" in out) == (2, False)
    (line,) = err.splitlines()
    assert "holds no order.json, and so does not say which heads and channels it measured" in line


def test_a_cell_of_another_folder_or_other_defaults_is_refused_by_name(compare, monkeypatch):
    assert compare("--methods", "ppo")[0] == 0
    file = compare.out / "cells" / "ppo-s20-seed0.json"
    cell = json.loads(file.read_text())
    assert cell["settings"]["clip_range"] == 0.2
    other = cell | {"identity": cell["identity"] | {"weights": "others"}}
    file.write_text(json.dumps(other))
    code, out, err = compare("--methods", "ppo")
    assert code == 2
    (line,) = err.splitlines()
    assert re.search(r"the weights have changed since .*/ppo-s20-seed0.json was measured: remove", line)
    assert "PPL" not in out
    file.write_text(json.dumps(cell))
    settings = SearchSettings(clip_range=0.3)
    with monkeypatch.context() as patch:
        patch.setitem(ANSWERING, "ppo", by_ppo(ppo, settings))
        code, out, err = compare("--methods", "ppo")
    assert code == 2
    (line,) = err.splitlines()
    assert "ppo-s20-seed0.json was measured with clip_range 0.2, not 0.3: remove it" in line
    assert "PPL" not in out
    assert json.loads(file.read_text()) == cell


def test_what_was_copied_into_a_folder_is_refused_by_name(compare):
    """A cell under another name, and a cell and the dense model of a comparison with another setting."""
    other = compare.out.with_name("other")
    assert compare("--methods", "uniform")[0] == 0
    assert compare("--methods", "uniform", "ffn-only", out=other, evaluations=24)[0] == 0

    def refused(name, source, says):
        before = (compare.out / name).read_bytes() if (compare.out / name).exists() else None
        shutil.copy(source, compare.out / name)
        code, out, err = compare("--methods", "uniform", "ffn-only")
        assert (code, "PPL" in out) == (2, False)
        (line,) = err.splitlines()
        assert re.search(says, line), line
        (compare.out / name).unlink() if before is None else (compare.out / name).write_bytes(before)

    cells = compare.out / "cells"
    renamed = "ffn-only-s20.json holds what belongs to cells/uniform-s20.json: remove"
    refused("cells/ffn-only-s20.json", cells / "uniform-s20.json", renamed)
    changed = "--evaluations has changed from 24 to 12 since .*{} was measured"
    refused("cells/ffn-only-s20.json", other / "cells" / "ffn-only-s20.json", changed.format("ffn-only-s20.json"))
    refused("dense.json", other / "dense.json", changed.format("dense.json"))


def test_two_comparisons_that_begin_at_once_with_other_settings_do_not_share_a_folder(compare, monkeypatch):
    """Both have found the folder empty; the one that writes later is refused, and the other's table is its own."""
    prepare, flags = filling.prepare, ("--methods", "uniform")

    def after_the_other(asked, folder, *rest):
        monkeypatch.setattr(filling, "prepare", prepare)
        words = list(sys.argv)
        assert compare(*flags, evaluations=24)[0] == 0
        sys.argv = words
        return prepare(asked, folder, *rest)

    monkeypatch.setattr(filling, "prepare", after_the_other)
    code, out, err = compare(*flags)
    assert (code, "PPL" in out) == (2, False)
    (line,) = err.splitlines()
    assert re.search("--evaluations has changed from 24 to 12 since .*: give another --out", line)
    assert compare(*flags, evaluations=24)[0] == 0


def test_questions_are_told_apart_by_what_they_are(tmp_path):
    questions = Questions({}, 7, tmp_path, score_tasks)
    digests = []
    for answer in ("yes", "no"):
        for task in TASKS:
            (tmp_path / f"{task}.jsonl").write_text(f"{task}: {answer}\n")
        digests.append(questions.facts())
    assert {name for name in digests[0] if digests[0][name] != digests[1][name]} == {"data"}


def test_a_folder_goes_on_with_another_batch_size_also_one_that_holds_its_first(compare):
    assert compare("--methods", "uniform", batch_size=4)[0] == 0
    file = compare.out / "settings.json"
    settings = json.loads(file.read_text())
    assert "batch_size" not in settings
    file.write_text(json.dumps(settings | {"batch_size": 4}))  # as it was written before
    code, _, err = compare("--methods", "uniform", "flap", batch_size=1)
    assert (code, err) == (0, "")


def test_another_setting_is_refused_and_loses_nothing(compare):
    assert compare("--methods", "uniform")[0] == 0
    code, _, err = compare("--methods", "uniform", seq_len=32)
    assert code == 2
    assert "was made with seq_len 64, not 32: give another --out" in err
    assert (compare.out / "cells" / "uniform-s20.json").exists()


@pytest.mark.parametrize(("made", "there"), [({"seq_len": 64}, "never"), ({"bos": "always"}, "always")])
def test_a_folder_of_windows_that_begin_otherwise_is_refused(made, there):
    """Folders that were filled before there was a choice hold windows that do not begin with BOS."""
    folder = SimpleNamespace(path="out", manifest={"made": made}, require_same_identity=lambda *_: None)
    asked = {"never": "always", "always": "never"}[there]
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(7)
    asking = SimpleNamespace(
        model="m", settings=plain(bos=asked), load_model=lambda: (tiny_model("llama"), tokenizer), load_texts=None
    )
    with pytest.raises(ChangedError, match=f"out was made with bos '{there}', not '{asked}': .* --bos {there}$"):
        load(asking, folder)
