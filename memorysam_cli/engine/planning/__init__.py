"""What fits into memory: candidates for a training's batch, tried for real, and the choice among them."""
