"""Depth networks: `build.build_network` assembles encoder, optional neck, decoder and head."""
