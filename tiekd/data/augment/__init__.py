"""Augmentation: random rotation, flip, crop and colour changes of the training samples."""
