"""The bodies of the programs in bin/, one module each."""
