"""``memorysam report``: what pages say about folders of ours; :mod:`memorysam_cli.report.pages` draws them.

``folders`` finds out what a folder holds, ``run_page`` and ``result_pages`` gather what its page shows, and ``report``
writes one page, also of two folders that are compared.
"""
