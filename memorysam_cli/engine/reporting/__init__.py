"""``memorysam report``: what pages say about folders of ours; :mod:`memorysam_cli.report.pages` draws them.

``folders`` finds out what a folder holds; ``run_pages`` writes the page, and gathers what it shows of a run and of two
folders that are compared; ``result_pages`` gathers what it shows of an evaluation and of a prediction.
"""
