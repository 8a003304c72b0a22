"""Necks: modules between encoder and decoder that map features to features of the same strides.

There is one Python module per neck; a recipe's neck node gives its name. Each module ends
with `build = ItsClass`. The class is called with `encoder_channels` and has an attribute
`channels`, one entry per feature.
"""
