"""Training: the objectives (task), the phases (phases), and the loop (trainer)."""
