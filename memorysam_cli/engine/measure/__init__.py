"""Memory and time of a recipe: counted, planned, and measured on this machine."""
