"""``--init``, parsed once into a value."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ffprune_env.budget.mapping import says_rates
from ffprune_env.search.saved_policy import Policy
from ffprune_env.search.starts.equal import Equal
from ffprune_env.search.starts.fisher import Fisher
from ffprune_env.search.starts.fisher_iterated import STEPS, FisherIterated
from ffprune_env.search.starts.known import FfnOnly
from ffprune_env.search.starts.names import FFN_ONLY, FISHER, NAMES
from ffprune_env.search.starts.other_run import STEPS as OTHER_STEPS
from ffprune_env.search.starts.other_run import OtherRun
from ffprune_env.search.starts.start import Start

if TYPE_CHECKING:
    from ffprune_env.search.settings import SearchSettings


def parse_start(settings: SearchSettings) -> Start:
    """Where the search is to start; the policy of another run is read here, and nowhere else.

    Args:
        settings: of the search: ``init`` says where, ``init_steps`` how often that is improved.

    Raises:
        ValueError: ``init`` is neither a name nor the folder of a run that left a policy.
    """
    init, steps = settings.init, settings.init_steps
    if init not in NAMES:
        if not Path(init).is_dir():
            raise ValueError(f"--init must be {', '.join(NAMES)} or the folder of a run, got {init!r}")
        return other_run(Policy.load(init), settings)
    if settings.starts_equal:
        return Equal()
    named: dict[str, Start] = {FFN_ONLY: FfnOnly(), FISHER: Fisher()}
    return named.get(init) or FisherIterated(STEPS if steps is None else steps)


def other_run(policy: Policy, settings: SearchSettings) -> OtherRun:
    """What another search has learnt, as a start.

    Args:
        policy: of the other search.
        settings: of this one.
    """
    steps = OTHER_STEPS if settings.init_steps is None else settings.init_steps
    # Steps are in rates, of which the other mappings keep the order alone.
    return OtherRun(policy, settings.meaning(), steps if says_rates(settings.mapping) else 0)
