"""How published data sets lie on disk: one engine for the declarations in ``data/datasets/``."""
