"""How fast and how small the work is, against the machine's own rate and against the reference's manner."""
