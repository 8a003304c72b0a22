"""Teachers, i.e. functions from a batch to its target depth in metres.

Each module has one kind of teacher; the module's function `build` returns the teacher.
"""
