"""Evaluation of trained networks: metrics, per frame, by range, and comparisons."""
