"""Evaluation of trained networks: metrics per image and per depth range, and comparisons."""
