"""What was written, as read back from the file."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf

from ffprune_env.export.gguf.key_heads import KeyHeads
from ffprune_env.export.gguf.kinds import Kind


@dataclass(frozen=True)
class GgufReport:
    """What was written.

    Attributes:
        size: bytes of the file.
        types: how many matrices have each type.
        fallbacks: for every type that llama.cpp took since rows do not divide into the blocks of the one asked for, how
            many matrices of each kind have it, such as ``{"q5_0": {"attn_q": 30}}``.
        expanded_layers: layers in which key/value heads are repeated, because their query heads share them unevenly.
        expanded_params: parameters of the repetitions.
        cache_growth: size of the key/value cache as a fraction of that of the model it was written from; folders of
            older versions hold heads that no query reads any more.
    """

    size: int
    types: Mapping[str, int]
    fallbacks: Mapping[str, Mapping[str, int]]
    expanded_layers: int
    expanded_params: int
    cache_growth: float

    @classmethod
    def of(cls, file: Path, kind: Kind, key_heads: KeyHeads) -> GgufReport:
        """Reads a file.

        Args:
            file: the file.
            kind: that was asked for.
            key_heads: that were written.
        """
        types: Counter[str] = Counter()
        fallbacks: dict[str, Counter[str]] = defaultdict(Counter)
        for tensor in gguf.GGUFReader(file).tensors:
            if len(tensor.shape) < 2:
                continue
            name = tensor.tensor_type.name.lower()
            types[name] += 1
            if tensor.tensor_type not in kind.holds:
                fallbacks[name][re.sub(r"^blk\.\d+\.", "", tensor.name).removesuffix(".weight")] += 1
        return cls(
            file.stat().st_size,
            dict(types.most_common()),
            {name: dict(found) for name, found in fallbacks.items()},
            key_heads.expanded_layers,
            key_heads.expanded_params,
            key_heads.cache_growth,
        )

    def told(self, kind: str) -> list[str]:
        """Lines for a person: size, types, what fell back, what is repeated.

        Args:
            kind: the type that was asked for.
        """
        counts = ", ".join(f"{count} {name}" for name, count in self.types.items())
        lines = [f"{self.size / 2**20:.1f} MiB, {kind}: {counts}"]
        for name, found in self.fallbacks.items():
            which = ", ".join(f"{count} {what}" for what, count in found.items())
            lines.append(f"stored as {name}, since their rows do not divide into blocks of {kind}: {which}")
        if self.expanded_layers:
            lines.append(
                f"in {self.expanded_layers} layers the query heads share keys unevenly; keys and values are repeated "
                f"there: {self.expanded_params:,} parameters more, cache {self.cache_growth:.2f} times"
            )
        return lines
