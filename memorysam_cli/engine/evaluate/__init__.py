"""Evaluation: scenes scored in two protocols, breakdowns, and the published benchmarks of failing sensors.

``evaluation`` is ``memorysam evaluate`` from its options to its files. ``scoring`` passes labeled scenes through a
network, ``counts`` adds their pixels up and makes scores of them, ``results`` prints them and writes the
``result_files``.
``robustness`` counts every sensor failure in one pass, ``robustness_results`` reports on it.
"""
