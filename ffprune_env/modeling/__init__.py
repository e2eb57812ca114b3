"""The code of a pruned model, which goes into its folder: it needs torch and transformers, and nothing of ffprune."""
