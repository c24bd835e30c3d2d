"""Prediction: from scenes to a folder of masks.

``job`` (what is to be done) → ``run`` → ``parts`` (what the folder holds, and what follows for what is wanted) →
``segment`` → ``files`` (of a scene) → ``ledger`` (its line). ``ray`` segments on a cluster;
``predictor`` gives arrays to a program instead of writing files.
"""
