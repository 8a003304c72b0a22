"""Heads: modules that map the decoder's features to depth in metres (and a divergence).

There is one Python module per head; a recipe's head node gives its name. Each ends with
`build = ItsClass`. Of `in_channels`, `stride`, `min_depth` and `max_depth`, the class gets those
that its signature has.
"""
