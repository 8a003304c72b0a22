"""What `bin/benchmark.py` measures: one module a word, with `add_arguments(parser)` and `run(arguments) -> dict`.

Every module holds our way against a plain one, interleaved in one process (`measure`).
"""

COMMANDS = ()
