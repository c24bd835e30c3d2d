"""``memorysam report``: the content of the report pages; :mod:`memorysam_cli.report.pages` renders them.

``folders`` finds out what a folder contains. ``run_pages`` writes the page, and collects its content for a run and for
two folders that are compared. ``result_pages`` does so for an evaluation and for a prediction.
"""
