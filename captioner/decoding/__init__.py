"""From image tokens to captions: options, constraints and searches, for torch and for NumPy."""
