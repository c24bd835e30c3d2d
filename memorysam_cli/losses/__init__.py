"""Training losses (METHOD §3): one module per loss, each registered by name in :mod:`memorysam_cli.registry`.

:mod:`~memorysam_cli.losses.loss` defines the interface. A further loss needs a module here (or a user's own file,
docs/extending.md), its keys below ``losses`` in a recipe, and a test.
"""
