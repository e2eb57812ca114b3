"""Surgery on a Hugging Face decoder: knows nothing of reinforcement learning."""
