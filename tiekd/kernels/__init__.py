"""The DPM head's arithmetic: the target distribution (`target`) and the head's depth and divergence (`reference`)."""
