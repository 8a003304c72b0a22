"""Controlled experiments: trains each recipe with several seeds on several sets, and compares."""
