"""Teachers: functions from a batch to depth in metres. Each module has one, made by `build`."""
