"""The report of a comparison as files: for programs, for a repository, for a browser."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ffprune_env.comparison.cell import Comparison
from ffprune_env.comparison.report.ablation import ablation_markdown
from ffprune_env.comparison.report.page import comparison_page
from ffprune_env.comparison.report.tables import comparison_markdown
from ffprune_env.lm.replacing import replacing
from ffprune_env.run.strict_json import strict_json


def write_reports(comparison: Comparison, folder: Path, ablation: bool = False) -> str:
    """Writes a comparison as .json, .md and .html.

    Args:
        comparison: what was measured.
        folder: where to; it must exist.
        ablation: whether it is of ``ppo`` with one part changed at a time, of which there are tables of its own.

    Returns:
        The name of the files, without what is behind the dot.
    """
    name, markdown = "comparison", comparison_markdown(comparison)
    if ablation:
        name, markdown = "ablation", f"{markdown}\n{ablation_markdown(comparison)}"
    contents = {"json": strict_json(asdict(comparison), indent=1), "md": markdown, "html": comparison_page(comparison)}
    for suffix, content in contents.items():
        with replacing(folder / f"{name}.{suffix}") as scratch:
            scratch.write_text(content, encoding="utf-8")
    return name
