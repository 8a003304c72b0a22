"""All that touches DeepSpeed: its config, the engine, a step, checkpoints."""
