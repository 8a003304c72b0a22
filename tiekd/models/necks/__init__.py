"""Necks: modules between encoder and decoder that map features to features of the same strides.

There is one Python module per neck; a recipe's neck node gives its name. Each module ends with
`build = ItsClass`. The class is called with the arguments from the recipe and with
`encoder_channels`. An instance's attribute `channels` states the number of channels of each
feature.
"""
