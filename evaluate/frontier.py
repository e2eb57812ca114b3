"""Prints and draws perplexity, file size and speed against each other, over the sparsities of a run.

    python train/ppo.py --sparsity 0.1:0.5 --run runs/all
    python evaluate/allocate.py runs/all --sparsity 0.15 0.3                   # writes models
    python evaluate/frontier.py runs/all                                       # measures them as files, and draws
    python evaluate/frontier.py runs/all --beside runs/alone --no-files --image docs/frontier.png

The models that were written, and the dense one, become GGUF files of all --types, which are measured in llama.cpp on
test text and timed in turns with the dense one as f16: dense and quantized is what people could use instead. What was
measured is kept in frontier.json in the folder of the run, so that the same command goes on where it stopped. With
--no-files, or without llama.cpp, what the run measured itself is drawn, and --beside marks other searches there.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from ffprune_env.cli.consoles import fail, say, start_logging, tell, wide_console
from ffprune_env.cli.flag_groups import RoundFlags
from ffprune_env.cli.flags import read_flags
from ffprune_env.cli.model_flags import SearchedFlags, TrustFlags
from ffprune_env.cli.past_run import load_past_run, read_run_settings
from ffprune_env.cli.progress import showing_phases
from ffprune_env.cli.settings import require_folder_of
from ffprune_env.export.gguf.kinds import GgufType
from ffprune_env.export.gguf.llama_cpp import require_llama_cpp
from ffprune_env.lm.ranges import require_in_range
from ffprune_env.lm.replacing import replacing
from ffprune_env.pruning.calibration_kind import FELL_BACK_NOTE
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.frontier import Point, frontier
from ffprune_env.run.frontier_files import FilePoint, KeptFiles, made_by, measure_files, measured_on, sources_of
from ffprune_env.run.frontier_files_plot import files_plot
from ffprune_env.run.frontier_page import frontier_page
from ffprune_env.run.frontier_plot import frontier_plot
from ffprune_env.run.frontier_rows import COLUMNS, NOTES, rows_of, with_mark
from ffprune_env.run.results import label

console = wide_console()

PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Args(SearchedFlags, RoundFlags, TrustFlags):
    """What to measure and to draw."""

    beside: tuple[Path, ...] = ()
    """folders of searches for one sparsity alone, of the same model on the same test text, re-fitted in the same way,
    to draw as single marks beside what the run measured: with --no-files, or without llama.cpp"""
    image: Path | None = None
    """file to write the picture to: .png, .svg or .pdf; None: plots/frontier.png in the folder of the run"""
    html: Path | None = None
    """file to write picture and table to as one page; None: frontier.html in the folder of the run"""
    files: bool = True
    """write models as files, and measure what was not measured yet; otherwise draw what the run measured itself"""
    file_windows: int | None = 4
    """windows of the run's test text that the perplexity of files is measured on, from its beginning; None takes all"""
    types: Annotated[tuple[GgufType, ...], tyro.conf.arg(metavar="TYPE ...")] = ("f16", "q8_0", "q4_k_m")
    """types of files, from the largest to the smallest"""


def main() -> int:
    """Measures, draws and prints; returns the exit code."""
    args = read_flags(Args, __doc__, default={"rounds": 5})
    start_logging(console, logging.INFO)
    logging.getLogger("gguf").setLevel(logging.WARNING)
    try:
        require_in_range("--rounds", args.rounds, 1)
        require_in_range("--file-windows", args.file_windows, 1)
        for flag, file in (("--image", args.image), ("--html", args.html)):
            require_folder_of(flag, file)
        require_picture(args.image)
        if not args.types:
            raise ValueError("--types takes at least one type of file, such as f16")
        require_beside_alike(args, args.files and measures_files())
        points = frontier(args.of, args.beside)
        files = measured_files(args)
        require_beside_alike(args, bool(files))  # those that were measured where llama.cpp was there
        draw(args, points, files)
    except KeyboardInterrupt:
        say("interrupted; what was measured is kept, and the same command goes on")
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        return fail(error, 2)
    return 0


def require_picture(file: Path | None) -> None:
    """Raises ValueError for a kind of picture that cannot be drawn."""
    if file is not None and file.suffix not in PICTURES:
        raise ValueError(f"--image {file} ends in {file.suffix or 'nothing'}; allowed are {', '.join(PICTURES)}")


def measures_files() -> bool:
    """Whether llama.cpp is there."""
    try:
        require_llama_cpp("measuring files")
    except ValueError:
        return False
    return True


def require_beside_alike(args: Args, files: bool) -> None:
    """Raises ValueError for runs that would have to stand beside files of another perplexity.

    Args:
        args: what is asked.
        files: whether any are drawn; otherwise it is what the run measured, on all test text too.
    """
    if args.beside and files and args.file_windows is not None:
        raise ValueError(
            f"--beside marks what was measured on all test text, beside files on {args.file_windows} windows of it: "
            f"add --no-files, which draws what the run measured, or --file-windows None"
        )


def measured_files(args: Args) -> list[FilePoint]:
    """The files of the run: measured now, or kept from before; none where nobody asked, or llama.cpp cannot."""
    if not args.files:
        return []
    run = RunFolder(args.of)
    sources = sources_of(run)
    asked = measured_on(run.identity()["test text"], args.file_windows, args.rounds)
    kept = KeptFiles(run, asked, None)
    try:
        kept = KeptFiles(run, asked, made_by())
        if not all(kept.has(source, kind) for source in sources for kind in args.types):
            with showing_phases(console):
                past = load_past_run(run, read_run_settings(run, args.trust_remote_code))
                test = past.texts["test"][: args.file_windows]
                measure_files(sources, args.types, past.model, past.tokenizer, test, args.rounds, kept)
    except ValueError as error:
        say(f"not all files are measured: {error}")
    return kept.of(sources, args.types)


def draw(args: Args, points: Sequence[Point], files: Sequence[FilePoint]) -> None:
    """Prints the table, and leaves picture and page."""
    settings = RunFolder(args.of).read_config()
    model = Path(settings["model"]).name
    text = Path(settings.get("test_text") or settings["text"]).name
    marked = {source.model for source in sources_of(RunFolder(args.of)) if source.fell_back} if files else set()
    columns, rows, notes = COLUMNS, rows_of(files, marked), NOTES
    if files:
        if any(file.model in marked for file in files):
            notes = (*notes, FELL_BACK_NOTE)
        # Of fewer windows perplexities are others than those that the run measured.
        figure = files_plot(files, model, text, points if args.file_windows is None else (), marked)
    else:
        columns, rows, notes = ("policy", "σ", "MiB", "test PPL"), measured_rows(points), ()
        if any(point.fell_back for point in points):
            notes = (FELL_BACK_NOTE,)
        figure = frontier_plot(points, model, text)
    table = Table()
    for column in columns:
        words = column in ("policy", "model", "as", "the best of")
        table.add_column(column, justify="left" if words else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    image = args.image or args.of / "plots" / "frontier.png"
    image.parent.mkdir(exist_ok=True)
    figure.savefig(image, dpi=150)
    html = args.html or args.of / "frontier.html"
    with replacing(html) as scratch:
        title = f"{model}, pruned: perplexity, size and speed" if files else f"{model}, pruned: perplexity and size"
        scratch.write_text(frontier_page(figure, title, columns, rows, notes), encoding="utf-8")
    tell(console, *notes, f"drawn in {image} and {html}")


def measured_rows(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """What the run measured itself, in words."""
    ordered = sorted(points, key=lambda x: (x.sparsity, x.policy != "dense", -x.test_ppl))
    return [
        (with_mark(label(x.policy), x.fell_back), f"{x.sparsity:g}", f"{x.size:.1f}", f"{x.test_ppl:.2f}")
        for x in ordered
    ]


if __name__ == "__main__":
    sys.exit(main())
