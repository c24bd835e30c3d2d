"""Builds the command line, which takes a tenth of a second, in the process that children are forked from."""

from memorysam_cli import app

app.program()
