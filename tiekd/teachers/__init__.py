"""Teachers: a batch to depth in metres. One module each, which ends with a `build`."""
