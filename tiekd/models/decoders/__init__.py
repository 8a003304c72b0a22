"""Decoders: features, fine to coarse, to one feature map for the head. One module each, named in a decoder node.

Each ends with `build = ItsClass`, is built with what it asks for of `encoder_channels`, `encoder_strides` and
`max_depth`, and has `channels` and `stride` (of its output against the image).
"""
