"""The families that pruned models can be written of.

This file is written into the folder of every pruned model, so it needs nothing at all.
"""

from __future__ import annotations

#: Auto classes of transformers, in the order of the table below.
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
#: Per ``model_type`` what transformers calls its classes; None where it has none.
FAMILIES: dict[str, tuple[str, str, str, str | None]] = {
    "llama": ("LlamaConfig", "LlamaModel", "LlamaForCausalLM", "LlamaForSequenceClassification"),
    "mistral": ("MistralConfig", "MistralModel", "MistralForCausalLM", "MistralForSequenceClassification"),
    "qwen2": ("Qwen2Config", "Qwen2Model", "Qwen2ForCausalLM", "Qwen2ForSequenceClassification"),
    "qwen3": ("Qwen3Config", "Qwen3Model", "Qwen3ForCausalLM", "Qwen3ForSequenceClassification"),
    "gemma": ("GemmaConfig", "GemmaModel", "GemmaForCausalLM", "GemmaForSequenceClassification"),
    "gemma2": ("Gemma2Config", "Gemma2Model", "Gemma2ForCausalLM", "Gemma2ForSequenceClassification"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3TextModel", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"),
    "smollm3": ("SmolLM3Config", "SmolLM3Model", "SmolLM3ForCausalLM", "SmolLM3ForSequenceClassification"),
    "granite": ("GraniteConfig", "GraniteModel", "GraniteForCausalLM", None),
    "cohere": ("CohereConfig", "CohereModel", "CohereForCausalLM", None),
    "cohere2": ("Cohere2Config", "Cohere2Model", "Cohere2ForCausalLM", None),
    "olmo2": ("Olmo2Config", "Olmo2Model", "Olmo2ForCausalLM", "Olmo2ForSequenceClassification"),
    "phi3": ("Phi3Config", "Phi3Model", "Phi3ForCausalLM", "Phi3ForSequenceClassification"),
    "opt": ("OPTConfig", "OPTModel", "OPTForCausalLM", "OPTForSequenceClassification"),
}


def pruned_names(family: str) -> dict[str, str]:
    """What the classes of a pruned family are called, by the Auto class that finds each.

    Args:
        family: one of :data:`FAMILIES`.
    """
    return {auto: f"Pruned{name}" for auto, name in zip(AUTO_CLASSES, FAMILIES[family], strict=True) if name}
