"""Where a policy starts from."""
