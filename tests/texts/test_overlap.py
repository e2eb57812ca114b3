"""A test text that is the search text under another name is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import run_main, settings

from ffprune_env.texts.overlap import require_unseen, share_in


def words(start: int, n: int, length: int = 64) -> torch.Tensor:
    """Windows of a text in which no token comes twice."""
    return torch.arange(start, start + n * length).view(n, length)


def test_the_share_is_that_of_the_runs_at_whatever_place():
    text = words(0, 4)
    moved = text.flatten()[5 : 5 + 3 * 64].view(3, 64)
    assert share_in(text, text) == 1.0
    assert share_in(words(1000, 4), text) == 0.0
    assert share_in(torch.cat([text[:1], words(1000, 3)]), text) == 0.25
    assert share_in(moved, words(1000, 2), text.view(1, -1)) == 1.0
    assert share_in(text.flip(1), text) == 0.0  # the same tokens in another order


def test_windows_shorter_than_a_run_say_nothing():
    assert share_in(words(0, 4, 16), words(0, 4, 16)) == 0.0


def test_seen_text_is_refused_with_its_share():
    require_unseen(words(0, 4), words(1000, 4))
    with pytest.raises(ValueError, match="50% of the test text is also search or calibration text, at most 1%"):
        require_unseen(words(0, 4), words(1000, 4), words(128, 4))


def test_a_copy_of_the_text_is_no_other_text(ppo_script, tiny_folder, text_file, tmp_path, capsys):
    copy = tmp_path / "other.txt"
    copy.write_text(f"A line before it.\n{text_file.read_text()}")
    run = tmp_path / "run"
    changes = {"test-text": copy, "test-windows": 400, "calibration-windows": 100}
    flags = settings(tiny_folder, text_file, run, **changes)
    assert run_main(ppo_script, flags) == 2
    assert "of the test text is also search or calibration text" in " ".join(capsys.readouterr().err.split())
    assert not run.exists()
