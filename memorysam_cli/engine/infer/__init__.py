"""Inference: run a trained network on scenes, in the same way for validation, evaluation, robustness and prediction.

``inference`` has the settings: which frames, how, on which device and in which precision. ``views`` are the ways of
showing frames to a network (scales, flips, windows, zeros). ``corruption`` damages the values of sensors. ``decision``
turns logits into classes.
"""
