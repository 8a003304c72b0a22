"""Networks: `build.build_network` assembles an encoder, a decoder and a head."""
