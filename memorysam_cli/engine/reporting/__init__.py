"""``memorysam report``: from the folders that commands leave to pages for people."""
