"""Heads: modules that map the decoder's features to depth in metres and, if any, a divergence.

There is one Python module per head; a recipe's head node gives its name. Each module ends
with `build = ItsClass`. The class is called with those of `in_channels`, `stride`, `min_depth` and
`max_depth` that its signature has.
"""
