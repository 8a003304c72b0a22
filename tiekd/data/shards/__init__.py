"""Tar shards: their members and index, the order of an epoch, and how shards are written."""
