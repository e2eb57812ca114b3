"""The model of a run, recovered: trained, written beside it, read back and measured on test text."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from ffprune_env.export.rewritten import save_rewritten
from ffprune_env.lm.batches import release_memory
from ffprune_env.lm.excess import excess, share_removed, share_text
from ffprune_env.lm.loss import perplexity_in_steps
from ffprune_env.lm.phases import phase
from ffprune_env.lm.pruned_folder import load_pruned
from ffprune_env.pruning.sinks import find_sinks, lost_sinks
from ffprune_env.recovery.recover import recover
from ffprune_env.recovery.session import Recovery
from ffprune_env.recovery.settings import RecoverySettings
from ffprune_env.recovery.teacher import Teacher
from ffprune_env.recovery.text import RecoveryText
from ffprune_env.run.best import read_best
from ffprune_env.run.config import CONFIG
from ffprune_env.run.folder import RunFolder
from ffprune_env.run.next_steps import serving
from ffprune_env.run.recovery_files import FACTS, FOLDER, WORK

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RecoveredModel:
    """What became of the model of a run.

    Attributes:
        run: the folder of its sparsity.
        recovery: what training did.
        dense_ppl, pruned_ppl, test_ppl: perplexities on test text: of the dense model, of ``model/``, and of what was
            written; the last is None where the model from before was kept.
        earlier: whether ``recovered/`` holds the model of an earlier recovery, where this one wrote none.
        served: the command that serves what was written, or writes what can be served; None where nothing was.
    """

    run: Path
    recovery: Recovery
    dense_ppl: float
    pruned_ppl: float
    test_ppl: float | None
    earlier: bool = False
    served: str | None = None

    @property
    def failure(self) -> str | None:
        """One line that says why there is no recovered model; None if there is one."""
        if self.test_ppl is not None:
            return None
        if self.earlier:
            why = f"nothing was written, and {FOLDER}/ in {self.run}, of an earlier recovery, stays"
        else:
            why = f"nothing was written, model/ in {self.run} is the best there is"
        return f"{why}: {self.recovery.stopped}"

    def table(self) -> Table:
        """The table a person reads at the end."""
        table = Table(title="Perplexity on test text, before and after recovery")
        for column in ("model", "test\nPPL", "e = ln\nPPL / dense", "e removed"):
            table.add_column(column, justify="left" if column == "model" else "right")
        before = excess(self.pruned_ppl, self.dense_ppl)
        table.add_row("dense", f"{self.dense_ppl:.2f}", "", "")
        table.add_row("searched, from disk", f"{self.pruned_ppl:.2f}", f"{before:.3f}", "")
        if self.test_ppl is not None:
            after = excess(self.test_ppl, self.dense_ppl)
            gone = share_text(share_removed(self.test_ppl, self.pruned_ppl, self.dense_ppl))
            table.add_row("recovered, from disk", f"{self.test_ppl:.2f}", f"{after:.3f}", gone)
        return table

    def summary(self) -> list[str]:
        """What was done, and what can be done with the model."""
        x = self.recovery
        lines = [
            f"{x.tokens:,} tokens in {x.steps} steps and {x.seconds:.0f} s; held-out KL {x.before.kl:.4f} -> "
            f"{x.after.kl:.4f}; {x.stopped}"
        ]
        if self.served is None:
            return lines
        return [
            *lines,
            f"serve it:    {self.served}",
            f'load it:     model = ffprune_env.load_pruned("{self.run / FOLDER}")',
        ]


def written_before(run: RunFolder) -> dict[str, Any]:
    """``best.json`` of a run that wrote its model; see :func:`~ffprune_env.run.best.read_best`.

    Args:
        run: the folder of a sparsity.

    Raises:
        ValueError: there is no model, or it was never measured.
    """
    if not any((run.path / name).is_file() for name in (CONFIG, "best.json")):
        raise ValueError(f"{run.path} holds no model of a run: there is no best.json in it")
    best = read_best(run, run.path)
    if not (run.path / "model").is_dir() or not isinstance(best.get("saved"), dict):
        raise ValueError(f"{run.path} holds no model that was written and measured: search it without --no-save-model")
    return best


def recover_run(
    run: RunFolder,
    teacher: PreTrainedModel | Teacher,
    text: RecoveryText,
    test_windows: torch.Tensor,
    settings: RecoverySettings,
    device: str,
    batch_size: int | None,
) -> RecoveredModel:
    """Recovers ``model/`` of a run to ``recovered/``, and adds what came of it to ``best.json``.

    What is no better leaves all of that as it is. What was trained is kept until everything is written: who gives the
    same command again after a full disk, or Ctrl-C, does not train again.

    Args:
        run: the folder of a sparsity.
        teacher: the dense model, or what it said.
        text: to train on, and what the state was chosen by.
        test_windows: int64 [n, seq_len], those that the run measured on.
        settings: what is trained, towards what, how long.
        device: where the model lives.
        batch_size: windows per forward pass when it is measured; None chooses.

    Raises:
        ValueError: the run wrote no model, or one that this teacher cannot teach.
        RuntimeError: memory runs out with a single window.
    """
    best, source, target = written_before(run), run.path / "model", run.path / FOLDER
    model = load_pruned(source, device=device)
    result = recover(
        model,
        teacher,
        text.train,
        settings,
        held_out=text.held_out,
        folder=run.path / WORK,
        tensorboard=run.path / "tb" / WORK,
    )
    facts = {"text": text.name, "settings": asdict(settings), **asdict(result)}
    test_ppl, served, earlier = None, None, target.is_dir()
    if result.kept:
        with phase("writing", f"the recovered model to {target}"):
            save_rewritten(model, target, source, card_section(result, settings, text))
        del model  # before it is read once more
        release_memory()
        with phase("reading back", str(target), len(test_windows)) as advance:
            read = load_pruned(target, device=device)
            test_ppl = perplexity_in_steps(read, test_windows, batch_size, advance)
        served = serving(read, target, Path(f"{target}.gguf"), written=False)
        is_there = isinstance(teacher, torch.nn.Module)
        sinks = find_sinks(teacher, test_windows, best.get("bos", "never")) if is_there else None
        lost = lost_sinks(sinks, read)
        measured = {"test_ppl": test_ppl, "search_ppl": None, "lost_sinks": lost}
        best["recovered"] = best["saved"] | measured | {"recovery": facts}
        run.write_json("best.json", best)
        run.write_json(FACTS, {**facts, "test_ppl": test_ppl})
    shutil.rmtree(run.path / WORK, ignore_errors=True)  # what was trained is there until now
    dense_ppl, pruned_ppl = best["dense"]["test_ppl"], best["saved"]["test_ppl"]
    return RecoveredModel(run.path, result, dense_ppl, pruned_ppl, test_ppl, earlier, served)


def card_section(result: Recovery, settings: RecoverySettings, text: RecoveryText) -> str:
    """What the card of the model says of its training.

    Args:
        result: what training did.
        settings: of the training.
        text: what it was on.
    """
    rows = {
        "trained on": f"{result.tokens:,} tokens of {text.name}, of {len(text.train)} windows or conversations",
        "its state chosen by": f"{len(text.held_out)} windows or conversations that were held out",
        "trained": f"{settings.what_is_trained} ({result.trained:,} parameters)",
        "loss": settings.objective,
        "teacher": "the dense model"
        if settings.teacher_topk is None
        else f"the dense model's {settings.teacher_topk} most probable tokens",
        "steps": f"{result.steps} of {settings.windows_per_step}, AdamW at {settings.rate:g}",
        "held-out KL to the dense model": f"{result.before.kl:.4f} before, {result.after.kl:.4f} after",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "## Recovery\n\nAfter pruning, and after what the table above tells of, the model was trained towards the "
        f"predictions of the dense one.\n\n| | |\n|---|---|\n{table}\n"
    )
