"""Distillation of a pruned model: a few minutes of training towards the predictions of the dense one."""
