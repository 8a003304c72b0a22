"""The hooks of a training run. Each module defines a hook, and a function `build` for recipes."""
