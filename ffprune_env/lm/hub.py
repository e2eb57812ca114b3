"""Is the Hugging Face hub there? Asked once and briefly, so that an offline machine fails at once."""

from __future__ import annotations

import functools

_TIMEOUT_S = 5.0


def is_offline() -> bool:
    """Whether the user switched the hub off, by ``HF_HUB_OFFLINE``; what was downloaded before can still be read."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def is_cached(repository: str) -> bool:
    """Whether a model of this hub id was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, "config.json"), str)


def require_hub(what: str, local_choices: str) -> None:
    """Returns if the hub answers.

    Args:
        what: what is wanted from it, for the message.
        local_choices: what can be used without it, for the message.

    Raises:
        OSError: the hub is out of reach or switched off by ``HF_HUB_OFFLINE``.
    """
    problem = _hub_problem()
    if problem is not None:
        raise OSError(
            f"{what} comes from the Hugging Face hub, out of reach now ({problem}); without it, use {local_choices}"
        )


@functools.cache
def _hub_problem() -> str | None:
    from huggingface_hub import constants, get_session

    if is_offline():
        return "HF_HUB_OFFLINE is set"
    try:
        status = get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S).status_code
    except Exception as error:  # the HTTP client's own exception types differ from version to version
        return str(error) or type(error).__name__
    # A proxy that refuses answers, too.
    return f"HTTP status {status}" if status in (403, 407) or status >= 500 else None
