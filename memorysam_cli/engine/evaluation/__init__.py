"""Evaluation: how scenes are shown to a network, counted and reported."""
