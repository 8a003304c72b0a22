"""Datasets, one module each, selected by name in the `data` section. Each module has a `build`."""
