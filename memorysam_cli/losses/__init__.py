"""The losses of METHOD §3, one file each."""
