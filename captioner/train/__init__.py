"""Training: what is learnt (objectives), by whom and when (phases), and the loop that does it (trainer)."""
