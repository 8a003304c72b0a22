"""Decoders: features, fine to coarse, to one feature map for the head.

There is one module per decoder, named in a decoder node. Each ends with `build = ItsClass`. It is
built with those of `encoder_channels`, `encoder_strides` and `max_depth` that its signature has.
It has `channels` and `stride`, which describe its output.
"""
