"""How a trained network looks at a scene, alike for validation, evaluation, robustness, prediction and measuring.

``inference`` says what a network is shown, how, where and in which precision; ``views`` are the ways of showing it
(scales, flips, windows, zeros); ``corruption`` spoils what sensors saw; ``decision`` makes classes of logits.
"""
