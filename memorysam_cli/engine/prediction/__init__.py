"""Prediction: from scenes to a folder of masks."""
