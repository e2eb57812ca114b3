"""Numbers that are spread evenly over a range, however many of them are taken: the sequence of van der Corput."""

from __future__ import annotations


def van_der_corput(i: int) -> float:
    """The i-th of 0, 1/2, 1/4, 3/4, 1/8, 5/8, ...: in [0, 1), the bits of i behind the point in reverse order."""
    bits = f"{i:b}"
    return int(bits[::-1], 2) / (1 << len(bits))
