"""From scores to rates (Algorithm 1 and its alternatives), and from rates to whole groups: arrays, no model."""
