"""The hooks of a recipe: logs, images, checkpoints. Each is one file with a `build`."""
