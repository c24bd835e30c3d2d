"""Weights from and for other people's code, and whether weights hold."""
