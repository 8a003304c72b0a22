"""Decoders: modules that map features, fine to coarse, to one feature map for the head.

There is one Python module per decoder; a recipe's decoder node gives its name. Each ends with
`build = ItsClass`. Of `encoder_channels`, `encoder_strides` and `max_depth`, the class gets those
that its signature has. Its attributes `channels` and `stride` describe its output.
"""
