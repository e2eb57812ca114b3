"""A name to a model, and a batch to its loss; what any tool for language models needs."""
