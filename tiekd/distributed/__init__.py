"""Ranks: how they start and end, what they tell each other, and who watches them."""
