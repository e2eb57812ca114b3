"""Draws perplexity against the size of the file, over the sparsities of a run of train/ppo.py.

    python train/ppo.py --sparsity 0.1:0.5 --run runs/all
    python evaluate/allocate.py runs/all --sparsity 0.25 --no-save-model
    python evaluate/frontier.py runs/all --beside runs/alone --image docs/frontier.png

Sparsities that evaluate/allocate.py was asked for are drawn as hollow marks.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ffprune_env.cli.consoles import fail, wide_console
from ffprune_env.cli.flag_groups import SearchedFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.settings import require_folder_of
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.frontier import frontier, frontier_plot
from ffprune_env.run.results import label


@dataclass(frozen=True, kw_only=True)
class Args(SearchedFlags):
    """What to draw."""

    beside: tuple[Path, ...] = ()
    """folders of searches for one sparsity alone, of the same model on the same test text, to draw as single marks"""
    image: Path = Path("frontier.png")
    """file to write the picture to: .png, .svg or .pdf"""


def main() -> int:
    """Draws, and prints what is drawn; returns the exit code."""
    args = read_flags(Args, __doc__)
    try:
        require_folder_of("--image", args.image)
        points = frontier(args.of, args.beside)
        settings = RunFolder(args.of).read_config()
        text = Path(settings.get("test_text") or settings["text"]).name
        frontier_plot(points, Path(settings["model"]).name, text).savefig(args.image, dpi=150)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    table = Table()
    for column in ("policy", "σ", "MiB", "test PPL"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for x in sorted(points, key=lambda x: (x.sparsity, x.policy != "dense", -x.test_ppl)):
        table.add_row(label(x.policy), f"{x.sparsity:g}", f"{x.size:.1f}", f"{x.test_ppl:.2f}")
    wide_console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
