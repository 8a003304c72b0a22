"""Heads: from the decoder's features to depth in metres (and a divergence).

There is one module per head, named in a head node. Each ends with `build = ItsClass`. It is built
with those of `in_channels`, `stride`, `min_depth` and `max_depth` that its signature has.
"""
