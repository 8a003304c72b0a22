"""From samples to batches on the device: who reads what, in which processes."""
