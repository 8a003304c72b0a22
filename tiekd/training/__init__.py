"""A training run: its components, their settings, the training loop, the hooks and the resume."""
