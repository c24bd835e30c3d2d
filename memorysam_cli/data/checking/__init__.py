"""Whether a data set can be used, and what its values are."""
