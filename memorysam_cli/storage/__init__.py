"""All that touches files: atomic writing, and readers that say what is wrong instead of guessing.

The only package that may call ``torch.load``, ``cv2.imdecode``, ``open(..., "w")`` and their like;
``tests/storage/test_gate.py`` enforces it. Nothing heavy is imported before a module that needs it.

* ``atomic``: files and folders that appear whole or not at all; ``documents``: YAML and JSON.
* ``lock``: one run per folder.
* ``headers``, ``images``: pictures and arrays.
* ``tensors``: safetensors. ``foreign``: other people's ``.pt`` files, opened in ``torch_child``, a confined process
  that first looks at them with ``torch_format``.
* ``archive``, ``archive_formats``: tar and zip, unpacked whole or not at all.
* ``hub``: downloads from the Hugging Face Hub, which can be given up, and uploads.
* ``children``: processes of our own; ``handover``: how they pass tensors.
"""
