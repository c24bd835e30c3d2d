"""Visible output: ``console`` for the terminal, ``live`` for progress, ``figures``, ``pictures`` of scenes, HTML
``pages``."""
