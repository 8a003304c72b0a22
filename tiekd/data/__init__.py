"""Datasets, augmentation and data loading: from image files to `Batch`es on the device."""
