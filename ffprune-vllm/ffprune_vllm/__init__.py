"""Lets vLLM serve models pruned by ffprune. vLLM calls :func:`register` in each of its processes; nobody else need."""

from __future__ import annotations

__all__ = ["FAMILIES", "register"]

#: What config.json calls the architectures that are served, each the name of a class in ``models.py``.
FAMILIES = (
    "PrunedCohere2ForCausalLM",
    "PrunedCohereForCausalLM",
    "PrunedGemma2ForCausalLM",
    "PrunedGemma3ForCausalLM",
    "PrunedGemmaForCausalLM",
    "PrunedGraniteForCausalLM",
    "PrunedLlamaForCausalLM",
    "PrunedMistralForCausalLM",
    "PrunedOPTForCausalLM",
    "PrunedPhi3ForCausalLM",
    "PrunedQwen2ForCausalLM",
    "PrunedQwen3ForCausalLM",
    "PrunedSmolLM3ForCausalLM",
)


def register() -> None:
    """Tells vLLM which class serves which pruned architecture; imports none of them."""
    from vllm import ModelRegistry

    for name in FAMILIES:
        ModelRegistry.register_model(name, f"ffprune_vllm.models:{name}")
