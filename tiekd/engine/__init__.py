"""All code that uses DeepSpeed: the engine config, the engine, one training step, checkpoints."""
