"""Data sets: one module each, named in the `data` node. Each ends with a `build`."""
