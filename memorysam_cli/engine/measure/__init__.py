"""What a recipe costs: memory and time by counting, what fits, and what this machine really does."""
