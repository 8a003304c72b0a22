"""Draws images of depth, errors and distributions, mostly without a plotting library."""
