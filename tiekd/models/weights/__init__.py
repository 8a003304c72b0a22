"""Weights by name: reading files, translating published names, and the fit to a network."""
