"""All that touches files: atomic writing, and readers that say what is wrong instead of guessing.

The only package that may call ``torch.load``, ``cv2.imdecode``, ``open(..., "w")`` and their like;
``tests/storage/test_gate.py`` enforces it. Nothing heavy is imported before a module that needs it.
"""
