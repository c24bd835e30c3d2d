"""Image encoders: they turn a frame into features at stride 4, 8, 16 and 32.

:mod:`~memorysam_cli.encoders.base` has the interface of an encoder, and the memory saver, which recomputes activations
instead of storing them. :mod:`~memorysam_cli.encoders.hiera` is SAM 2's Hiera with a fast forward pass over tokens in
the order of :mod:`~memorysam_cli.encoders.windows`. :mod:`~memorysam_cli.encoders.products` has fast matrix products
for CPUs. ``memorysam_cli.registry.ENCODERS`` lists encoders by name; docs/extending.md shows how to add one.
"""
