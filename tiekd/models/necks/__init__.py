"""Necks: features to features of the same strides, between encoder and decoder. One module each, named in a neck node.

Each ends with `build = ItsClass`, is built with `encoder_channels`, and has `channels`.
"""
