"""Teachers: callables from a batch to depth in metres, one per module, made by its `build`."""
