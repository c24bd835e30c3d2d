"""Training, evaluation and prediction: the work behind the commands."""
