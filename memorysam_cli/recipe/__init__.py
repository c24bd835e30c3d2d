"""What is asked: recipes, their schema, and the one way to read them."""

from memorysam_cli.recipe.files import Measured, Reported, recipes_folder, shipped
from memorysam_cli.recipe.reading import Document, load, parse, read
from memorysam_cli.recipe.schema import (
    ALL,
    AUTO,
    BACKBONES,
    DEFAULT,
    UNKNOWN_NAME,
    Augment,
    Data,
    Lora,
    Model,
    Ohem,
    Optim,
    Recipe,
    Spmm,
    Train,
    is_word,
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
    "Measured",
    "Model",
    "Ohem",
    "Optim",
    "Recipe",
    "Reported",
    "Spmm",
    "Train",
    "is_word",
    "load",
    "parse",
    "read",
    "recipes_folder",
    "shipped",
]
