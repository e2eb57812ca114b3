"""What is written is there as a whole, or what was there before still is."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ffprune_env.lm.replacing import WRITING, remove_unfinished, replacing

KILLED = """
import os, signal, sys
from ffprune_env.lm.replacing import replacing
with replacing(sys.argv[1]) as scratch:
    if sys.argv[2] == "folder":
        scratch.mkdir()
        (scratch / "part").write_text("half")
    else:
        scratch.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def killed_while_writing(target: Path, what: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), what], check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    target = tmp_path / "out.json"
    for text in ("old", "new"):
        with replacing(target) as scratch:
            assert scratch.parent == tmp_path
            assert scratch.suffix == ".json"
            before = target.read_text() if target.exists() else None
            scratch.write_text(text)
            assert before == (None if text == "old" else "old")
        assert target.read_text() == text
    assert names(tmp_path) == ["out.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    target = tmp_path / "out.json"
    target.write_text("old")

    def write_half(path, text, **_):
        path.write_bytes(text[:2].encode())
        raise error

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(type(error)), replacing(target) as scratch:
        scratch.write_text("new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["out.json"]


def test_what_cannot_be_moved_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"), replacing(tmp_path / "out") as scratch:
        scratch.write_text("new")
    assert names(tmp_path) == []


@pytest.mark.parametrize("what", ["file", "folder"])
def test_killed_in_the_middle_leaves_the_old_one_and_the_next_one_clears_up(tmp_path, what):
    target, other = tmp_path / "out", tmp_path / "other-out"
    if what == "file":
        target.write_text("old")
    killed_while_writing(target, what)
    killed_while_writing(other, what)
    assert sum(name.startswith(WRITING) for name in names(tmp_path)) == 2
    assert (target.read_text() == "old") if what == "file" else not target.exists()
    with replacing(target) as scratch:
        scratch.write_text("new")
    assert target.read_text() == "new"
    (left,) = (name for name in names(tmp_path) if name != "out")
    assert left.endswith("other-out")  # of another target; its writer clears it up
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["out"]


def test_what_another_process_is_writing_stays(tmp_path):
    target = tmp_path / "out"
    with replacing(target) as one, replacing(target) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
        code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "")
        subprocess.run([sys.executable, "-c", code, str(target), "file"], check=True)
        assert target.read_text() == "half"
        assert (one.read_text(), other.read_text()) == ("one", "other")
    assert target.read_text() == "one"
    assert names(tmp_path) == ["out"]


def test_permissions_are_those_of_the_old_file_or_the_usual_ones(tmp_path):
    target, fresh = tmp_path / "out", tmp_path / "fresh"
    target.touch(0o600)
    usual = tmp_path / "usual"
    usual.touch()
    for path in (target, fresh):
        with replacing(path) as scratch:
            scratch.write_text("new")
    with replacing(tmp_path / "folder") as scratch:
        scratch.mkdir()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (target, fresh, tmp_path / "folder")]
    assert modes[:2] == [0o600, stat.S_IMODE(usual.stat().st_mode)]
    (tmp_path / "plain").mkdir()
    assert modes[2] == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_folder_replaces_an_empty_one_and_no_other(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    with replacing(target) as scratch:
        scratch.mkdir()
        (scratch / "config.json").write_text("{}")
    assert names(target) == ["config.json"]
    with pytest.raises(OSError, match="not empty"), replacing(target) as scratch:
        scratch.mkdir()
    assert names(target) == ["config.json"]
    assert names(tmp_path) == ["model"]


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("old")
    (tmp_path / "link").symlink_to("kept/file")
    with replacing(tmp_path / "link") as scratch:
        scratch.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept" / "file").read_text() == "new"


def test_what_is_no_file_is_written_to_directly(tmp_path):
    code = (
        "import sys\nfrom ffprune_env.lm.replacing import replacing\nprint('before', flush=True)\n"
        "with replacing('/dev/stdout') as scratch, scratch.open('a') as file:\n    file.write('result')"
    )
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "before\nresult"
    assert names(tmp_path) == ["log"]


def test_the_longest_name_can_be_written(tmp_path):
    for name in ("n" * 250 + ".json", "é" * 125 + ".json"):
        with replacing(tmp_path / name) as scratch:
            scratch.write_text("new")
        assert (tmp_path / name).read_text() == "new"
