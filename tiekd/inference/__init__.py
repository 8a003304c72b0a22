"""Inference: runs a trained network as a function, on image and video files, or exported."""
