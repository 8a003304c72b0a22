"""A student as a file that runs without tiekd: what writes it, reads it back and holds it against the network."""
