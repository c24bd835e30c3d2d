"""Image encoders: what turns a frame into features at stride 4, 8, 16 and 32.

:mod:`~memorysam_cli.encoders.base` says what an encoder is to the rest of the program and recomputes activations
instead of keeping them. :mod:`~memorysam_cli.encoders.hiera` is SAM 2's with its fast forward pass, over tokens that
lie in :mod:`~memorysam_cli.encoders.windows`; :mod:`~memorysam_cli.encoders.products` has the fast matrix products of a
CPU. ``memorysam_cli.registry.ENCODERS`` lists encoders by name; docs/extending.md shows how to add one.
"""
