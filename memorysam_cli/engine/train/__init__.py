"""Training: the loop, its checkpoints, and how a run begins or continues."""
