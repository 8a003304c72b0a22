"""Networks: `build.build_network` puts an encoder, a decoder and a head together."""
