"""Public checkpoints of another make become captioners."""
