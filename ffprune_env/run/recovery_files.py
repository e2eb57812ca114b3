"""What a recovery leaves beside ``model/``, and when that goes: with the model that it was made of."""

from __future__ import annotations

import logging
import shutil

from ffprune_env.run.folder import RunFolder

logger = logging.getLogger(__name__)

#: Where the recovered model goes, and what is told of it.
FOLDER, FACTS = "recovered", "recovery.json"
#: Where a recovery keeps what it goes on from.
WORK = "recovery"


def forget_recovery(run: RunFolder) -> None:
    """Removes what a recovery made of a ``model/`` that is there no more, and says so.

    Args:
        run: the folder of a sparsity; its ``best.json`` must not tell of a recovery any more.
    """
    there = [run.path / name for name in (FOLDER, FACTS, WORK) if (run.path / name).exists()]
    if run.path / FOLDER in there:
        logger.warning("%s was made of another model/ than there is now: it is removed, recover again", there[0])
    for path in there:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
