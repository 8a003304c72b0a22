"""Augmentation: the random decisions for a training sample, and the transforms that apply them."""
