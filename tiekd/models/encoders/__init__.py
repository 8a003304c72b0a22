"""Encoders: an image (B, 3, H, W) to a list of features, fine to coarse.

There is one module per encoder, named in an encoder node. Each ends with `build = ItsClass` and
has `channels` and `strides`, one entry per returned feature.
"""
