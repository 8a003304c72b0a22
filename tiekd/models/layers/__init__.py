"""Layers that encoders, necks, decoders and heads share or are built from."""
