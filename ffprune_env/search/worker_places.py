"""Places for workers in a Ray cluster: reserved before anything is asked of them, and not waited for in silence."""

from __future__ import annotations

import logging
import math
import re
import socket
import time
from typing import Any

logger = logging.getLogger(__name__)

# Seconds after which it is said what is waited for, and after which it is given up.
_PATIENCE_S = 10.0
_LIMIT_S = 120.0
_CONNECT_S = 10.0


def require_listening(address: str) -> None:
    """Refuses a cluster that nothing answers for, where Ray would go on asking for minutes in silence.

    Args:
        address: ``host:port``, with or without a scheme such as ``ray://``; nothing is known here of another, such as
            ``auto``.

    Raises:
        ValueError: no connection can be made.
    """
    found = re.fullmatch(r"(?:\w+://)?\[?([^/\[\]]+)\]?:(\d+)", address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster at {address}: {error}; give --ray-address host:port of its head node"
        ) from error


def reserve_places(count: int, resource: str) -> Any:
    """Waits until a cluster has room for all workers, and keeps it for them.

    Args:
        count: workers, each of which needs one.
        resource: of what: ``CPU`` or ``GPU``.

    Returns:
        Ray's placement group of ``count`` places, to be given back by :func:`give_back`.

    Raises:
        ValueError: the cluster has fewer, or others hold them for too long.
    """
    import ray
    from ray.util.placement_group import placement_group

    asked = f"{count} workers need a {resource} each"
    there = int(ray.cluster_resources().get(resource, 0))
    if there < count:
        raise ValueError(f"{asked}, and there are {there}: ask for fewer with --workers")
    group = placement_group([{resource: 1}] * count)
    began, told = time.monotonic(), False
    try:
        while not group.wait(min(_PATIENCE_S, 1.0)):
            waited = time.monotonic() - began
            if waited < _PATIENCE_S:
                continue
            free = math.floor(ray.available_resources().get(resource, 0))
            if waited >= _LIMIT_S:
                raise ValueError(
                    f"{asked}, and after {waited:.0f} s {free} of {there} in the cluster are free: end what holds the "
                    "others, or ask for fewer with --workers"
                )
            if not told:
                told = True
                logger.warning(
                    "waiting for the Ray cluster: %s, and %d of %d are free; giving up after %g s",
                    *(asked, free, there, _LIMIT_S),
                )
    except BaseException:  # Ctrl-C as well: nothing is left waiting in the cluster
        give_back(group)
        raise
    return group


def give_back(group: Any) -> None:
    """Frees the places of a placement group."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)
