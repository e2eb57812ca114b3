"""--gguf: what could not be written after a search is refused before it."""

from __future__ import annotations

import pytest
from tiny_runs import run_main, settings


@pytest.mark.parametrize(
    ("family", "words", "says"),
    [
        (None, ("f16", "--no-save-model"), "--gguf f16 is written of the model in model/: leave out --no-save-model"),
        (None, ("f16", "--sparsity", "0.1:0.5"), "of a range no model is written; ffprune allocate takes --gguf"),
        (None, ("q8_0",), "q8_0 stores 32 numbers at a time, which head_dim 8 is no multiple of: take f16"),
        ("opt", ("f16",), "a opt cannot be written as GGUF, "),
    ],
)
def test_it_is_refused_before_the_search(
    ppo_script, save_tiny, tiny_folder, text_file, tmp_path, capsys, family, words, says
):
    folder = tiny_folder if family is None else save_tiny(family)
    capsys.readouterr()  # the bar of what saves the model
    assert run_main(ppo_script, [*settings(folder, text_file, tmp_path / "run"), "--gguf", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "run" / "samples.jsonl").exists()
