"""Weights: reads files, translates published names of tensors, compares them with a network."""
