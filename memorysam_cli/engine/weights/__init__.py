"""Weights from and for other code, and checks of weights files."""
