"""Datasets, joint transforms and the loader: from files to `Batch`es on the device."""
