"""Pruned models on disk: what is written, the code and card in the folder, GGUF."""
