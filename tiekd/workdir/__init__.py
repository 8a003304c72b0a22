"""The files that a run leaves on disk: its work dir, checkpoints and weights."""
