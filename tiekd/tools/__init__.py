"""The bodies of the programs in bin/."""
