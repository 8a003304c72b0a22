"""What happens around the training loop: logs, pictures, checkpoints, evaluation. One hook is one file with a `build`."""
