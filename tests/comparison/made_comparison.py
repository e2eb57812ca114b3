"""A comparison that was never run, with figures that look like some, and what its reports hold."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np

from ffprune_env.comparison.cell import Cell, Comparison

# e(method) / e(uniform) with calibration, and how much a seed moves it.
METHODS = {
    "uniform": (1.0, 0.0), "ffn-only": (0.83, 0.0), "flap": (0.78, 0.0), "random": (0.80, 0.02),
    "evolution": (0.70, 0.02), "evopress": (0.66, 0.01), "cma-es": (0.72, 0.03), "ppo": (0.74, 0.04),
    "svd-llm": (1.35, 0.0), "slicegpt": (1.12, 0.0),
}  # fmt: skip


WITHOUT_SEARCH = ("uniform", "ffn-only", "flap", "svd-llm", "slicegpt")


REBUILDS = ("svd-llm", "slicegpt")


DENSE = 20.16


def make_cell(method, sparsity, seed, n_layers, zero_shot):
    """A cell as a run on smollm2-135m would give it."""
    rng = np.random.default_rng([round(1000 * sparsity), seed or 0, list(METHODS).index(method)])
    share, noise = METHODS[method]
    rebuilds, searches = method in REBUILDS, method not in WITHOUT_SEARCH
    excess = (9 * sparsity**2 + 0.3 * sparsity) * (share + noise * rng.normal())
    final, plain = DENSE * math.exp(excess), DENSE * math.exp(excess * (1.9 + 2 * sparsity))
    removed = np.full((2, n_layers), sparsity)
    if searches or method == "flap":
        bump = np.sin(np.arange(n_layers) / n_layers * np.pi)
        removed = sparsity * (0.6 + 0.7 * bump) + 0.3 * sparsity * rng.normal(size=(2, n_layers))
    rates = np.clip(1 - removed, 0.2, 1)
    if method == "ffn-only":
        rates[0] = 1
    kept = np.stack([np.maximum(1, np.rint(9 * rates[0])), np.rint(1536 * rates[1])], axis=1).astype(int).ravel()
    search = final * 0.94
    tokens = np.unique(np.geomspace(2**13, 2**22, 60).astype(int)) if searches else []
    decay = [math.exp(-4 * i / 60) - math.exp(-4) for i in range(1, 61)]
    trace = [(int(at), search * (1 + 0.9 * x)) for at, x in zip(tokens, decay, strict=searches)]
    values = {
        "method": method, "target_sparsity": sparsity, "seed": seed, "kept": None if rebuilds else kept.tolist(),
        "sparsity": None if rebuilds else sparsity + 1e-5, "total_sparsity": 0.717 * sparsity,
        "params": round(134_515_008 * (1 - 0.717 * sparsity)), "search_ppl": None if rebuilds else search,
        "test_ppl": final if rebuilds else plain, "test_interval": (0.97 * plain, 1.03 * plain),
        "calibrated_test_ppl": None if rebuilds else final,
        "calibrated_test_interval": None if rebuilds else (0.97 * final, 1.03 * final),
        "evaluations": 512.0 if searches else 0.0, "tokens": 2**22 if searches else 0,
        "seconds": 834.2 + 100 * rng.normal() if searches else 0.4, "trace": trace, "zero_shot": None,
    }  # fmt: skip
    if zero_shot and not seed:
        tasks = ("arc_easy", "piqa", "winogrande")
        accuracies = {task: 0.3 + 0.25 * math.exp(-excess) + 0.01 * rng.normal() for task in tasks}
        values["zero_shot"] = accuracies | {"average": float(np.mean(list(accuracies.values())))}
    return Cell(**values)


def make_comparison(sparsities=(0.2, 0.3), seeds=3, methods=tuple(METHODS), n_layers=30, zero_shot=True):
    """Realistic numbers for every method at every sparsity; methods that draw nothing have one cell."""
    cells = [
        make_cell(method, sparsity, seed, n_layers, zero_shot)
        for sparsity in sparsities
        for method in methods
        for seed in ([None] if METHODS[method][1] == 0 else range(seeds))
    ]
    kinds = (("attention", 9), ("ffn", 1536))
    return Comparison(
        settings={
            "model": "smollm2-135m", "text": "wiki.valid.tokens", "test_text": "wiki.test.raw", "seq_len": 512,
            "search_windows": 16, "evaluations": 512, "calibration": "ridge", "ridge": 0.01, "test_windows": 40,
            "test_seq_len": 2048, "command": "python evaluate/compare_methods.py --model smollm2-135m --seeds 0 1 2",
        },
        units=[
            {"name": f"{kind}.{layer}", "kind": kind, "layer": layer, "n_groups": n}
            for layer in range(n_layers) for kind, n in kinds
        ],
        n_params=134_515_008, dense_test_ppl=DENSE, dense_interval=(19.6, 20.7),
        dense_zero_shot={"arc_easy": 0.56, "piqa": 0.55, "winogrande": 0.56, "average": 0.5567} if zero_shot else None,
        cells=cells,
    )  # fmt: skip


def small(finals, sparsity=0.2):
    """A comparison with these calibrated test perplexities by method, one per seed; it is never drawn."""
    comparison = make_comparison((sparsity,), methods=(), n_layers=2, zero_shot=False)
    cells = []
    for method, values in finals.items():
        like = method if method in METHODS else "ppo"
        for seed, value in enumerate(values):
            cell = make_cell(like, sparsity, seed if len(values) > 1 else None, 2, zero_shot=False)
            cells.append(replace(cell, method=method, calibrated_test_ppl=value))
    return replace(comparison, cells=cells)


def markdown_tables(text):
    """Every table as a list of rows of texts."""
    tables, last = [], ""
    for line in text.splitlines():
        if line.startswith("|"):
            tables += [[]] if not last.startswith("|") else []
            tables[-1].append([x.strip() for x in re.split(r"(?<!\\)\|", line)[1:-1]])
        last = line
    return tables


class Page(HTMLParser):
    """What a browser would make of a page: its tags, ids and references, and whether they are closed in order."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.references, self.tables, self._open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            self.ids += [value] if name == "id" else []
            self.references += [value] if name in ("href", "xlink:href", "src", "data", "action") else []
            self.references += re.findall(r"url\(([^)]*)\)", value or "")
            assert not name.startswith("on")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style" and "svg" not in self._open:
            assert "@import" not in data
            assert "url(" not in data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += f" {data}" if self._open[-1] == "small" else data
