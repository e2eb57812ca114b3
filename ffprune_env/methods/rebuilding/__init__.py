"""Methods that rebuild weights instead of leaving some out: low rank, and a smaller hidden size."""
