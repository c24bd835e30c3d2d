"""What training minimizes (METHOD §3): one file a loss, each registered by name in :mod:`memorysam_cli.registry`.

:mod:`~memorysam_cli.losses.loss` says what a loss is; a further one is one module here (or a file of the user's own,
docs/extending.md), its keys below ``losses`` in a recipe, and its test.
"""
