"""Necks: features to features of the same strides, between encoder and decoder.

There is one module per neck, named in a neck node. Each ends with `build = ItsClass`, is built
with `encoder_channels`, and has `channels`.
"""
