"""What a model can be asked to stay good at: text, questions, conversations, or any function."""
