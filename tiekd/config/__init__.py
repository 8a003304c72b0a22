"""Recipes: read and merged, checked, and turned into objects."""
