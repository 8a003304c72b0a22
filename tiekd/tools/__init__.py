"""The implementations of the programs in bin/: one module or package per program."""
