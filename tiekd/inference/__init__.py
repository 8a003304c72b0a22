"""A trained network in use: as a function, over files and videos, and as an exported file."""
