"""What a search does not look at: said, or refused where somebody asked for it, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Collection

from ffprune_env.budget.mapping import says_rates
from ffprune_env.search.settings import SearchSettings
from ffprune_env.search.starts.names import EQUAL

logger = logging.getLogger(__name__)


def require_heeded(settings: SearchSettings, asked: Collection[str]) -> None:
    """Says in one line which settings a search cannot heed, since only the order of its scores counts.

    Args:
        settings: of the search.
        asked: names of the settings that somebody gave a value; others have it from a preset, a config or a default.

    Raises:
        ValueError: somebody asked for one of those.
    """
    if says_rates(settings.mapping):
        return
    why = f"--mapping {settings.mapping} keeps the order of scores alone"
    other = settings.init if settings.starts_equal else None
    if "init" in asked and other not in (None, EQUAL):
        raise ValueError(
            f"{why}, which cannot say --init {other}: leave that out, say --init none or runs/<other>, or take "
            f"--mapping waterfill"
        )
    if "init_steps" in asked and settings.init_steps:
        raise ValueError(f"{why}, which no step improves: leave out --init-steps, or take --mapping waterfill")
    ignored = ["--init-steps", "--curve-windows"] if other is None else ["--init", "--init-steps", "--curve-windows"]
    ignored += [] if settings.fresh_windows else ["--pool-windows"]
    start = "the policy of another run is taken as it is" if other is None else "the search starts from equal scores"
    # That a default is not what it says is more than a note.
    level = logging.INFO if other in (None, EQUAL) else logging.WARNING
    logger.log(level, "%s: %s, and nobody looks at %s", why, start, ", ".join(ignored))
