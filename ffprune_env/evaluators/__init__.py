"""What the environment measures with: a language model, curves that stand for one, tasks."""
