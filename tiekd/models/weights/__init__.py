"""Reading of weights: files, names of tensors in published files, and comparison with a network."""
