"""From a text to windows of tokens, and who sees which of them."""
