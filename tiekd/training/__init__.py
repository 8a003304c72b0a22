"""A training run: what it is made of, the loop, and what happens around it."""
