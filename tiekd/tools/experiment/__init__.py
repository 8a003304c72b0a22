"""Controlled experiments: recipes x seeds x sets, run one after the other, and their report."""
