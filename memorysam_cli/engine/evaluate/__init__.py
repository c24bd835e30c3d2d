"""Evaluation: scores in two protocols, breakdowns, and the published benchmarks of missing and noisy sensors.

``evaluation`` is ``memorysam evaluate`` from its options to its files. ``scoring`` runs a network on labeled scenes,
``counts`` adds their pixels up and computes scores, ``results`` prints them and writes the ``result_files``.
``robustness`` counts every sensor failure in one pass, ``robustness_results`` reports on it.
"""
