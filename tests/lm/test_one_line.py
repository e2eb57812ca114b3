"""An error in one line."""

from __future__ import annotations

from ffprune_env.lm.one_line import one_line


def test_what_an_error_says_is_one_line_and_never_empty():
    assert one_line(ValueError("a\n  b\tc ")) == "a b c"
    assert one_line(ValueError(" \n")) == "ValueError"
