"""The implementations of the programs in bin/, one module per program."""
