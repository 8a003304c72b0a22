"""Heads: the decoder's features to depth in metres (and a divergence). One module each, named in a head node.

Each ends with `build = ItsClass` and is built with what it asks for of `in_channels`, `stride`, `min_depth` and
`max_depth`.
"""
