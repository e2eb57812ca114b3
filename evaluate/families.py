"""Every causal family of the installed transformers, random and tiny: measured, pruned and written right, or refused.

    python evaluate/families.py                             # all of them
    python evaluate/families.py --families llama gemma3     # some
    python evaluate/families.py --markdown docs/models.md   # the table as a file

A model of each family is made from its default configuration with all sizes small. Four things must hold: the dense
perplexity is that of the model's own logits; putting heads and channels in another order changes nothing; a pruned
model computes what the dense one does with the same heads and channels masked; and what is written computes what was
measured. Whatever does not hold must be refused by the library, in one line that says why. Anything else is a failure,
and the exit code is 1.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import ffprune_env as ff
from ffprune_env.cli.flags import read_flags
from ffprune_env.pruning.calibration import RidgeCalibration
from ffprune_env.pruning.damage import damage_curves
from ffprune_env.pruning.gradients import collect_gradients
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores
from ffprune_env.pruning.units import find_units, member_columns

T = TypeVar("T")

# Relative difference of two perplexities in float32 that is no fault.
_TOLERANCE = 1e-4
_MOST_PARAMETERS = 20_000_000
_MOST_BYTES = 24 * 2**30
#: Sizes by the names that configurations give them; the first pattern that fits counts.
SIZES = (
    (r"(.*_)?vocab_size(_.*)?|encoder_hash_byte_group_vocab", 256),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_(source|target)_positions|model_max_length", 128),
    (r"original_max_position_embeddings|context_length", 128),
    (r"(.*_)?(num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|depth)", 4),
    (r"num_layers_per_stack|num_blocks|num_global_layers", 2),
    (r"(.*_)?num_(key_value_heads|kv_heads|key_heads|query_groups)", 2),
    (r"(.*_)?(num_)?(attention_heads|n_heads?|num_heads|value_heads)|n_head", 4),
    (r".*intermediate_size(_.*)?|.*ffn_dim|.*ffn_hidden_size|dim_ff|dff|d_ff|d_inner|feed_forward_size|mlp_dim", 64),
    (r"qk_head_dim", 16),  # the part with positions, and the part without
    (r"(.*_)?(head_dim|headdim|head_size|d_head|dim_head|kv_channels|d_kv|attention_head_dim|rotary_dim)", 8),
    (r"hidden_size_per_layer_input|.*_rank|hc_lowrank|.*state_size|mamba_d_state|index_topk|d_rel|ple_embed_dim", 8),
    (r"(.*_)?(hidden_size|d_model|n_embd|embedding_dim|emb_dim|embed_dim|embedding_size)(_global)?", 32),
    (r"lru_width|word_embed_proj_dim|mamba_d_ssm|.*hidden_dim|out_hidden_size|query_pre_attn_scalar", 32),
    (r"(.*_)?(n_routed_experts|num_local_experts|num_experts|moe_num_experts|n_experts|zero_expert_num)", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts|num_experts_per_.*", 2),
    (r"n_group|topk_group|num_expert_group|mamba_n_groups|n_groups", 1),
    (r"sliding_window(_size)?|attention_window_size|local_attention|.*chunk_size|.*chunk_length|block_size", 16),
    (r"image_size|crop_size", 28),
    (r"patch_size", 14),
)
# Tokens with a meaning of their own get the last place in the vocabulary, which no text here uses.
_SPECIAL = re.compile(r".*(token_id|token_index|mask_index)")
_VOCABULARY, _HEADS, _KEY_HEADS, _MOST_LAYERS = 256, 4, 2, 4
# Of the noise that is added to weights as they are initialized.
_NOISE = 0.1
# Sizes that depend on each other in ways of one family.
_LAYERS = ["sliding_attention", "full_attention"] * 2
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "gemma3n_text": {"layer_types": _LAYERS, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"] * 2},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"num_heads": 2},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
}


@dataclass(frozen=True)
class Args:
    """What is tried; every field is a flag."""

    families: list[str] = field(default_factory=list)
    """model types to try; none means all"""
    markdown: str | None = None
    """file to write the table to, as Markdown"""
    timeout: float = 120
    """seconds that a family may take"""


@dataclass(frozen=True)
class Outcome:
    """What became of one family.

    Attributes:
        family: its model type.
        measured, searched, written: whether that was done and found right.
        reason: the refusal of the first that was not.
        fault: what is wrong; empty if nothing is.
    """

    family: str
    measured: bool = False
    searched: bool = False
    written: bool = False
    reason: str = ""
    fault: str = ""


class Fault(Exception):  # noqa: N818 - it is one of the library, and a finding here
    """Neither right nor refused."""


def main() -> int:
    """Tries the families and prints the table; returns the exit code."""
    args = read_flags(Args, __doc__)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    unknown = [name for name in args.families if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if unknown:
        errors.print(
            "[bold red]error:[/]", f"transformers {transformers.__version__} has no causal family {unknown[0]!r}"
        )
        return 2
    torch.set_num_threads(1)  # before a process is forked
    names = args.families or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    outcomes = [in_a_process(name, args.timeout) for name in track(names, "families", console=errors, transient=True)]
    console = Console(soft_wrap=True)
    table = Table(title=f"causal families of transformers {transformers.__version__}, random and tiny")
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for outcome in outcomes:
        table.add_row(*map(escape, cells(outcome)), style="red" if outcome.fault else None)
    console.print(table)
    faults = [outcome for outcome in outcomes if outcome.fault]
    searched, measured = (sum(getattr(x, name) for x in outcomes) for name in ("searched", "measured"))
    console.print(
        f"{len(outcomes)} families: {measured} measured, {searched} pruned, {len(faults)} neither right nor refused"
    )
    if args.markdown is not None:
        Path(args.markdown).write_text(markdown(outcomes), encoding="utf-8")
    return 1 if faults else 0


_COLUMNS = ("family", "perplexity", "search", "written", "why not")


def cells(outcome: Outcome) -> list[str]:
    """A row of the table."""
    said = ("yes" if done else "no" for done in (outcome.measured, outcome.searched, outcome.written))
    return [outcome.family, *said, f"FAULT: {outcome.fault}" if outcome.fault else outcome.reason]


def markdown(outcomes: list[Outcome]) -> str:
    """The table as a file."""
    rows = [[cell.replace("|", "\\|") for cell in cells(outcome)] for outcome in outcomes]
    lines = ["| " + " | ".join(row) + " |" for row in ([*_COLUMNS], ["---"] * len(_COLUMNS), *rows)]
    return "\n".join(
        [
            "# Models",
            "",
            f"Every causal family of transformers {transformers.__version__}, as a tiny model with random weights: "
            "measured and pruned right, or refused in one line. Printed by",
            "",
            "    python evaluate/families.py --markdown docs/models.md",
            "",
            "*perplexity*: equal to that of the model's own logits. *search*: ranking changes nothing, and the pruned "
            "model computes what the dense one does with the same heads and channels masked. *written*: what "
            "was written computes what was measured.",
            "",
            *lines,
            "",
        ]
    )


def in_a_process(family: str, timeout: float) -> Outcome:
    """Tries a family in a process of its own, which may take so many seconds and a bounded piece of memory."""
    forked = multiprocessing.get_context("fork")
    ours, theirs = forked.Pipe(duplex=False)
    process = forked.Process(target=_answer, args=(family, theirs))
    process.start()
    theirs.close()
    try:
        if ours.poll(timeout):
            outcome: Outcome = ours.recv()
            return outcome
        return Outcome(family, fault=f"no answer in {timeout:g} s")
    except EOFError:
        process.join()
        return Outcome(family, fault=f"its process died with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _answer(family: str, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("ffprune_env").setLevel(logging.CRITICAL)
    pipe.send(examine(family))
    pipe.close()


def examine(family: str) -> Outcome:
    """Tries one family."""
    outcome = Outcome(family)
    try:
        model = build(family)
    except Exception as error:  # a default configuration made small can fail in any way
        return replace(outcome, reason=f"not tried, no tiny model can be made: {one_line(error)}")
    try:
        for step in steps(model):
            outcome = replace(outcome, **step)
    except Fault as fault:
        return replace(outcome, fault=str(fault))
    except Exception as error:  # what is no refusal is a fault
        return replace(outcome, fault=f"{type(error).__name__}: {one_line(error)}")
    return outcome


def steps(model: PreTrainedModel) -> list[dict[str, Any]]:
    """What can be done with a model, one after the other, up to the first refusal; a fault is raised."""
    windows = torch.randint(3, _VOCABULARY - 8, (2, 24), generator=torch.Generator().manual_seed(0))
    done: list[dict[str, Any]] = []

    def refused(reason: str) -> list[dict[str, Any]]:
        return [*done, {"reason": reason.removeprefix(f"{type(model).__name__} ")}]

    dense, reason = attempt(lambda: ff.perplexity(model, windows))
    if dense is None:
        return refused(reason)
    require_same("the dense perplexity", dense, own_perplexity(model, windows))
    done.append({"measured": True})

    original = copy.deepcopy(model)
    prunable, reason = attempt(lambda: ff.PrunableModel(model))
    if prunable is None:
        require_same("perplexity after a refusal", own_perplexity(model, windows), dense)
        return refused(reason)
    calibration, reason = attempt(lambda: prepare(prunable, windows))
    if calibration is None:
        return refused(reason)
    require_same("perplexity after ranking", ff.perplexity(model, windows), dense)
    kept = np.array([max(1, unit.n_groups // 2) for unit in prunable.units])
    with prunable.pruned(kept):
        require_same(
            "perplexity of the pruned model",
            ff.perplexity(model, windows),
            own_perplexity(masked(original, prunable.kept_groups(kept)), windows),
        )
    with prunable.pruned(kept, calibration):
        pruned = ff.perplexity(model, windows)
    if abs(math.log(pruned / dense)) < _TOLERANCE:
        raise Fault(f"half of all groups removed, and the perplexity is {dense:.4f} as before")
    done.append({"searched": True})

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        saved, reason = attempt(lambda: (ff.save_pruned(prunable, kept, out, calibration=calibration), out)[1])
        if saved is None:
            return refused(reason)
        require_same(
            "perplexity of what was written", own_perplexity(ff.load_pruned(out, device="cpu"), windows), pruned
        )
    return [*done, {"written": True}]


def prepare(prunable: ff.PrunableModel, windows: torch.Tensor) -> RidgeCalibration:
    """Ranks a model, and does on it all that the default search does before it begins."""
    collect_gradients(prunable, windows)
    stats = collect_statistics(prunable, windows)
    prunable.rank(wanda_scores(prunable, stats))
    calibration = RidgeCalibration(prunable, stats)
    damage_curves(prunable, windows, calibration)
    return calibration


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """What a call gives, or the one line in which it refuses."""
    try:
        return call(), ""
    except ValueError as error:
        if "\n" in str(error):
            raise Fault(f"a refusal of several lines: {one_line(error)}") from error
        return None, str(error)


def require_same(what: str, got: float, expected: float) -> None:
    """Raises Fault unless two perplexities are finite and differ by no more than rounding."""
    if not (math.isfinite(expected) and abs(got - expected) <= _TOLERANCE * expected):
        raise Fault(f"{what} is {got:.4f}, and should be {expected:.4f}")


@torch.no_grad()
def own_perplexity(model: PreTrainedModel, windows: torch.Tensor) -> float:
    """Perplexity by the book: from the model's own logits, window by window, in float64."""
    # A cache is an output of no use here, and some families cannot make one of all their kinds of layers.
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    losses = []
    for window in windows:
        logits = model(input_ids=window[None], **options).logits[0].double()
        losses.append(F.cross_entropy(logits[:-1], window[1:]))
    return float(torch.stack(losses).mean().exp())


@torch.no_grad()
def masked(model: PreTrainedModel, kept: list[Any]) -> PreTrainedModel:
    """A model whose output projections ignore the heads and channels that are not kept; changed in place."""
    for layout, members in zip(find_units(model), kept, strict=True):
        gone = torch.from_numpy(np.setdiff1d(np.arange(layout.n_members), members))
        layout.output.weight[:, member_columns(layout, gone)] = 0
    return model


def build(family: str) -> PreTrainedModel:
    """A tiny random model of a family, whose weights and biases are all different."""
    default = CONFIG_MAPPING[family]()
    problems = []
    for changes in ({}, {"lists": True}, {"shared_keys": False}):
        try:
            config = CONFIG_MAPPING[family](**{**small(default, **changes), **OVERRIDES.get(family, {})})
            with torch.device("meta"):
                shapes = AutoModelForCausalLM.from_config(config)
            size = sum(parameter.numel() for parameter in shapes.parameters())
            if size > _MOST_PARAMETERS:
                raise ValueError(f"{size / 1e6:.0f} million parameters are left when its sizes are small")
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=_NOISE)
                own_perplexity(model, torch.arange(3, 15)[None])
        except Exception as error:  # any error at all, and another way is tried
            problems.append(error)
        else:
            return model
    raise problems[0]


def small(config: PretrainedConfig, lists: bool = False, shared_keys: bool = True) -> dict[str, Any]:
    """The settings of a configuration that are too large, made small.

    Args:
        config: the default configuration of a family.
        lists: cut lists of one value per layer, too, which most configurations make themselves.
        shared_keys: fewer key/value heads than query heads, where there is a number of them.
    """
    settings: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            settings[name] = small(value, lists, shared_keys)
        elif isinstance(value, bool) or name.startswith("_"):
            continue
        elif isinstance(value, int):
            size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), value)
            if name in ("num_key_value_heads", "num_kv_heads") and not shared_keys:
                size = _HEADS
            if _SPECIAL.fullmatch(name):
                size = _VOCABULARY - 1
            if size < value:
                settings[name] = size
        elif isinstance(value, list) and lists and len(value) > _MOST_LAYERS:
            settings[name] = value[:_MOST_LAYERS]
    # Encoders that were made to be decoders, too.
    if hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        settings["is_decoder"] = True
    return settings


def one_line(error: Exception) -> str:
    """What an error says, on one line of bearable length."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


if __name__ == "__main__":
    sys.exit(main())
