"""Recipes: their schema and the one way to read them.

``comparing`` says what two of them differ in and what every key means, and makes copies to edit.
"""

from memorysam_cli.recipe.reading import (
    Document,
    Measured,
    Reported,
    load,
    loss_settings,
    parse,
    read,
    recipes_folder,
    shipped,
)
from memorysam_cli.recipe.schema import (
    ALL,
    AUTO,
    BACKBONES,
    DEFAULT,
    UNKNOWN_NAME,
    Augment,
    Data,
    Lora,
    LossSettings,
    Model,
    Ohem,
    Optim,
    Recipe,
    Section,
    Spmm,
    Train,
)

__all__ = [
    "ALL",
    "AUTO",
    "BACKBONES",
    "DEFAULT",
    "UNKNOWN_NAME",
    "Augment",
    "Data",
    "Document",
    "Lora",
    "LossSettings",
    "Measured",
    "Model",
    "Ohem",
    "Optim",
    "Recipe",
    "Reported",
    "Section",
    "Spmm",
    "Train",
    "load",
    "loss_settings",
    "parse",
    "read",
    "recipes_folder",
    "shipped",
]
