"""Training: the loop, its checkpoints, and how a run starts or resumes."""
