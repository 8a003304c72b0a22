"""A trained network for use: as a function, over files, and as a file of its own."""
