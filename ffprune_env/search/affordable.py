"""How many windows of search text a search measures, and how long a search a budget of windows affords."""

from __future__ import annotations

from dataclasses import replace

from ffprune_env.search.settings import SearchSettings

_LAST_LOOK = 1 / 6  # of a budget: what is left of a short one is for the search


def affordable(settings: SearchSettings, windows: int) -> SearchSettings:
    """The longest search, in whole rollouts, that measures no more than some windows.

    Its last look takes fewer windows than the settings say where it would take more than a sixth of all.

    Args:
        settings: of the search; how many evaluations they ask for does not count.
        windows: that may be measured.

    Raises:
        ValueError: not even two evaluations and the finalists fit.
    """
    while settings.final_windows > 1 and windows_at_last(settings) > windows * _LAST_LOOK:
        settings = replace(settings, final_windows=settings.final_windows // 2)
    rollouts, too_many = 0, windows // settings.rollout + 1  # an evaluation takes one window at the least
    while too_many - rollouts > 1:
        middle = (rollouts + too_many) // 2
        fits = most_windows(replace(settings, evaluations=middle * settings.rollout)) <= windows
        rollouts, too_many = (middle, too_many) if fits else (rollouts, middle)
    if rollouts:
        return replace(settings, evaluations=rollouts * settings.rollout)
    if settings.final_windows > 1:  # rather a search than a closer look at what it found
        return affordable(replace(settings, final_windows=settings.final_windows // 2), windows)
    shorter = [replace(settings, evaluations=evaluations) for evaluations in range(settings.rollout, 1, -1)]
    for candidate in shorter:
        if most_windows(candidate) <= windows:
            return candidate
    raise ValueError(f"ppo needs a budget of at least {most_windows(shorter[-1])} windows, got {windows}")


def most_windows(settings: SearchSettings) -> int:
    """Windows of search text that a search measures at the most, the finalists of every target included.

    With fresh windows also what the start and the dense model are measured on beside the candidates, and with
    patience what the policy's mean is; not what is measured for TensorBoard alone, which no budget pays for.
    """
    schedule, more = settings.schedule(), windows_at_last(settings)
    if settings.draws:
        beside = sum(schedule.samples(t) for t in range(0, settings.total, settings.per_update))
        more += beside + min(beside, settings.windows_wanted["pool"])
    if settings.patience is not None and settings.total:
        # The start, the mean before the first update, that after the last one, and every few between them.
        looks = 3 + (settings.total // settings.per_update - 1) // settings.look_every
        more += looks * len(settings.targets) * settings.watch_windows
    return sum(schedule.samples(t) for t in range(settings.total)) + more


def windows_at_last(settings: SearchSettings) -> int:
    """Windows that the last look at the candidates measures at the most."""
    if len(settings.targets) > 1:
        return 3 * len(settings.targets) * windows_everywhere(settings)
    return sum(rivals * n for rivals, n in rounds(settings, 3 + settings.finalists))


def windows_everywhere(settings: SearchSettings) -> int:
    """Windows that a function of σ is measured on at every target, when a search over several ends."""
    return max(1, settings.final_windows // 2)


def rounds(settings: SearchSettings, candidates: int) -> list[tuple[int, int]]:
    """Successive halving of the finalists: how many are measured, on how many windows, round after round."""
    if candidates == 2:  # a first look would leave both
        return [(2, settings.final_windows)]
    plan = [(candidates, min(2 * settings.search_windows, settings.final_windows))]
    while plan[-1][1] < settings.final_windows and plan[-1][0] > 1:
        rivals, n = plan[-1]
        plan.append((max(2, rivals // 2) if rivals > 2 else rivals, min(2 * n, settings.final_windows)))
    return plan
