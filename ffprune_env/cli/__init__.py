"""Flags, saved configs and consoles of the scripts."""
