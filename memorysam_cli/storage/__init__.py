"""All file access: atomic writing, and readers that report errors instead of guessing.

This is the only package that may call ``torch.load``, ``cv2.imdecode``, ``open(..., "w")`` and similar functions;
``tests/storage/test_gate.py`` enforces it. A heavy library is imported only in a module that needs it.

* ``atomic``: files and folders that appear completely or not at all; ``documents``: YAML and JSON.
* ``lock``: one run per folder.
* ``headers``, ``images``: pictures and arrays.
* ``tensors``: safetensors. ``foreign``: untrusted ``.pt`` and ``.pth`` files, opened in ``torch_child``, a confined
  process that first checks them with ``torch_format``.
* ``archive``, ``archive_formats``: tar and zip, unpacked completely or not at all.
* ``hub``: downloads from the Hugging Face Hub, which can be stopped, and uploads.
* ``children``: child processes; ``handover``: how they pass tensors.
"""
