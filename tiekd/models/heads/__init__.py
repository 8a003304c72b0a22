"""Heads: modules that map the decoder's features to depth in metres.

Some heads also compute the divergence of a target distribution from the predicted one. There is one
Python module per head; a recipe's head node gives its name. Each module ends with `build =
ItsClass`. The class is called with the arguments from the recipe, and with those of the arguments
`in_channels`, `stride`, `min_depth` and `max_depth` that its signature has.
"""
