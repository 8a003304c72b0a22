"""Teachers: functions that return target depth in metres for a batch; `build` makes a module's."""
