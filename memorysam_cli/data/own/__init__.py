"""Data sets of the user's own sensors, and HHA from depth."""
