"""The hooks of a training run: logs, TensorBoard, checkpoints, guards. Each file has a `build`."""
