"""Inference: a trained network as a function, on image and video files, and as an exported file."""
