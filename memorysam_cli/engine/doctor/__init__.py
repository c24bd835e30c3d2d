"""``memorysam doctor``: what of this machine helps or hinders, and the remedy."""
