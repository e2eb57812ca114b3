"""Prunes a model by hand: rank, decide, re-fit, measure, write.

    python examples/library.py                          # smollm2-135m to pruned/
    python examples/library.py path/to/model folder     # another model, another folder

The decision is an invented one; `ff.search` finds a better one.
"""

import sys

import ffprune_env as ff

name, folder = sys.argv[1:] or ("smollm2-135m", "pruned")
model, tokenizer = ff.load_model(name)
calibration = ff.load_windows("python-docs", tokenizer, split="calibration", seq_len=128, n_windows=64)
test = ff.load_windows("python-docs", tokenizer, split="test", seq_len=128, n_windows=16)
print(f"dense: {ff.perplexity(model, test):.2f}")

prunable = ff.PrunableModel(model)  # wraps the model in place
stats = ff.collect_statistics(prunable, calibration)
prunable.rank(ff.wanda_scores(prunable, stats))  # puts heads and channels in order, once
opened = ff.collect_statistics(prunable, ff.openings_of(calibration), batch_size=None)  # how windows begin
ridge = ff.RidgeCalibration(prunable, stats, openings=opened)

# The decision, as one score per unit: here attention is worth more than FFNs, and the middle of the model less.
last = prunable.units[-1].layer
scores = [(unit.kind == "attention") - 0.5 * (0 < unit.layer < last) for unit in prunable.units]
allocation = ff.allocate(scores, 0.2, prunable.units)

with prunable.pruned(allocation.kept):
    print(f"{allocation.sparsity:.1%} cut: {ff.perplexity(model, test):.2f}")
with prunable.pruned(allocation.kept, ridge):
    print(f"cut and re-fitted: {ff.perplexity(model, test):.2f}")

ff.save_pruned(prunable, allocation.kept, folder, tokenizer, ridge)
print(f"written to {folder}: {ff.perplexity(ff.load_pruned(folder), test):.2f}")
