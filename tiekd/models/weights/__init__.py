"""Weights by name: files, published ones, and what of them fits a network."""
