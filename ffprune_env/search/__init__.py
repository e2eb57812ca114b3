"""The search: its settings, starts, schedule, callbacks, policies and workers."""
