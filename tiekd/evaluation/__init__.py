"""Figures of trained networks: metrics, by frame, by range, and side by side."""
