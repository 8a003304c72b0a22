"""Evaluation of trained networks: metrics per image and depth range, comparison of networks."""
