"""A training run: building its components, the training loop, the hooks, and resuming."""
