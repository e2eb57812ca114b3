"""Where a model lives and runs, and in which number format."""

from __future__ import annotations

import torch
from torch import nn


def pick_device(device: str) -> torch.device:
    """Resolves ``auto`` and refuses a device that this machine does not have."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here; allowed are auto, cpu, cuda, cuda:N") from error
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Resolves ``auto``: bfloat16 where the hardware multiplies it fast, else float32."""
    allowed = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if dtype == "auto":
        return torch.bfloat16 if _has_fast_bfloat16(device) else torch.float32
    if dtype not in allowed:
        raise ValueError(f"unknown dtype {dtype!r}; allowed are auto, {', '.join(allowed)}")
    return allowed[dtype]


def running_device(module: nn.Module) -> torch.device:
    """Where a module's weights are while it runs; accelerate may keep them elsewhere until then."""
    hook = getattr(module, "_hf_hook", None)
    if getattr(hook, "offload", False):
        return torch.device(hook.execution_device)  # type: ignore[union-attr]
    return next(module.parameters()).device


def devices_held(model: nn.Module) -> int:
    """Accelerators that a model is spread over; 1 where it runs on the CPU, or on one that it is streamed to."""
    held = {parameter.device for parameter in model.parameters()}
    return max(1, len([device for device in held if device.type not in ("cpu", "meta")]))


def require_resident(model: nn.Module, what: str) -> None:
    """Raises ValueError for a model that is streamed; ``what`` needs all of its weights at hand."""
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise ValueError(
            f"{what} needs all of the model in memory, and it is streamed from elsewhere: say --criterion wanda "
            "--init ffn-only --calibration none --reward-model cut --no-save-model, or give it more --max-memory"
        )


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
