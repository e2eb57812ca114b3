"""Where a text may be cut, so that parts of it are as long as they should be in every script."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

# A place moves by no more characters than this, so that text without spaces is cut where it should be. Of text with
# spaces only words longer than this are cut.
_REACH = 128
_SPACE = re.compile(r"\s")
# Ends of sentences in scripts with and without spaces, with the quotes and brackets that close after them.
_SENTENCE_END = re.compile(r"[。｡！？．…؟۔।॥။።។៕.!?][」』”’〉》）】)\]\"']{0,3}")
_ZERO_WIDTH_JOINER = "\u200d"
# Thai and Lao AM are letters by their category, but are drawn over what comes before them.
_AM = "\u0e33\u0eb3"
# Khmer COENG, which writes the consonant after it below the one before it.
_COENG = "\u17d2"


def part(text: str, cut: tuple[float, float]) -> str:
    """The characters of a text between two fractions of its length, moved to whole words.

    Args:
        text: any text.
        cut: fractions between 0 and 1.

    Returns:
        Parts of cuts that touch are disjoint, and together they are whole.
    """
    return text[boundary(text, cut[0]) : boundary(text, cut[1])]


def pieces(text: str, n: int) -> list[str]:
    """Cuts a text into n pieces of nearly equal length, between words."""
    places = [boundary(text, i / n) for i in range(n + 1)]
    return [text[start:end] for start, end in pairwise(places)]


def boundary(text: str, fraction: float) -> int:
    """The first good place to cut a text at or after a fraction of its length.

    That is white space; if none is near, the end of a sentence; if none is near either, a character that is not
    drawn together with the one before it. The larger a fraction, the larger the place.
    """
    place = int(fraction * len(text))
    if not 0 < place < len(text):
        return place
    if space := _SPACE.search(text, place, place + _REACH):
        return space.start()
    # From a little before, because the place may lie between the end of a sentence and what closes after it.
    ends = (found.end() for found in _SENTENCE_END.finditer(text, max(place - 4, 0), place + _REACH))
    place = next((end for end in ends if end >= place), place)
    last = min(place + _REACH, len(text))
    while place < last and _joined(text[place - 1], text[place]):
        place += 1
    return place


def _joined(before: str, after: str) -> bool:
    """Whether two characters are one to the reader: accents, vowel signs, jamo of Hangul, emoji of several parts.

    A row of flags counts as one: which letters make a pair is only known from its beginning.
    """
    return (
        unicodedata.category(after).startswith("M")
        or after == _ZERO_WIDTH_JOINER
        or (before == _ZERO_WIDTH_JOINER and not after.isspace())
        or after in _AM
        or (before == _COENG and not after.isspace())
        or ("\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= after <= "\U0001f1ff")
        or "\u1160" <= after <= "\u11ff"
        or "\U0001f3fb" <= after <= "\U0001f3ff"
    )
