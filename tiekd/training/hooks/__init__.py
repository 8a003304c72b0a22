"""What happens around the training loop: logs, pictures, checkpoints, evaluation. A hook is one file with a `build`."""
