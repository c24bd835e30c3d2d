"""The published benchmarks of missing and noisy sensors."""
