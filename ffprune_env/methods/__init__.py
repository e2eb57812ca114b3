"""Ways to decide how much of every unit stays, one small file each; ``registry.py`` lists them by name."""
