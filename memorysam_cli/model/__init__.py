"""The network and its weights.

Shapes are written with one legend everywhere: ``B`` batch, ``M`` modalities, ``K`` classes, ``C`` channels,
``H W`` pixels, ``h w`` feature cells, ``L = h·w``.
"""

from memorysam_cli.model.weights import Segmenter, load

__all__ = ["Segmenter", "load"]
