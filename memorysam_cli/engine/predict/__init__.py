"""Prediction: from scenes to a folder of masks.

``job`` (the work) → ``run`` → ``parts`` (the state of the folder, and what to do with it) → ``segment`` → ``files`` (of
a scene) → ``ledger`` (its line). ``ray`` segments on a cluster. ``predictor`` returns arrays to a program instead of
writing files.
"""
