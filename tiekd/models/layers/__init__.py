"""Layers that encoders, necks, decoders and heads are built from."""
