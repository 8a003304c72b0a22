"""Decoders: modules that map features, fine to coarse, to one feature map for the head.

There is one Python module per decoder; a recipe's decoder node gives its name. Each module ends
with `build = ItsClass`. The class is called with the arguments from the recipe, and with those of
the arguments `encoder_channels`, `encoder_strides` and `max_depth` that its signature has. An
instance's attributes `channels` and `stride` state the number of channels and the stride of its
output.
"""
