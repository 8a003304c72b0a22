"""The implementations of the programs in bin/: a module or a package per program."""
