"""What an error says, in one line."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; the name of its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
