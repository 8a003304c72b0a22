"""Encoders: modules that map an image (B, 3, H, W) to a list of features, fine to coarse.

There is one Python module per encoder; a recipe's encoder node gives its name. Each module ends
with `build = ItsClass`. The class is called with the arguments from the recipe. An instance's
attributes `channels` and `strides` state the number of channels and the stride of each returned
feature.
"""
