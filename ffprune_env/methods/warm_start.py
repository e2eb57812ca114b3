"""Searches that start from what another one found at a lower sparsity (Sec. 2.2 and Table 4 of the paper)."""

from __future__ import annotations

from dataclasses import replace

from ffprune_env.methods.registry import METHODS, Method, WarmStart

#: σ of the search that others start from, as in the paper.
FROM = 0.2
#: Of the budget of a search from nothing. The paper's GPU-hours are 6.13 at 20 % and 7.03 at 30 %, warm-started from
#: there: 0.90 more, if the second contains the first.
SHARE = 0.15


def warm_name(method: str) -> str:
    """What a search is called that starts from what ``method`` found at :data:`FROM`."""
    return f"{method}-from-{100 * FROM:g}"


#: By name. They are in no comparison that does not name them.
WARM_STARTED: dict[str, Method] = {
    warm_name(name): replace(METHODS[name], warm=WarmStart(name, FROM, SHARE)) for name in ("ppo", "ppo-paper")
}
