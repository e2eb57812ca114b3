"""Pruned models as one file for llama.cpp: which can be, what is in it, and what llama.cpp makes of it."""
