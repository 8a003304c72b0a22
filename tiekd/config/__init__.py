"""Reads, merges and checks recipes (YAML), and builds the objects that they describe."""
