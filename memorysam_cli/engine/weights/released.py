"""What the name of an upstream weights file says, and the recipe that this makes of it (METHOD §6).

The released files are called ``RGBDEL_epoch95_65.38.pth``; the training code writes ``epoch95_65.38.pth`` into a
folder named after its recipe. Nothing else says which sensors, in which order, such weights were trained with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from memorysam_cli import recipe as recipes
from memorysam_cli.errors import UsageError
from memorysam_cli.recipe import Recipe
from memorysam_cli.text import shown

LETTERS = {
    "deliver": {"RGB": "img", "I": "img", "D": "depth", "E": "event", "L": "lidar"},
    "mcubes": {"RGB": "image", "I": "image", "A": "aolp", "D": "dolp", "N": "nir"},
}
"""Data set → letter → modality."""
_RESULT = re.compile(r"epoch[_-]?(?P<epoch>\d+)_(?P<miou>\d{1,3}(?:\.\d+)?)(?![\d.]*\d)")
# RGB in either case; I alone only in capitals, for "in" and "id" are words.
_SENSORS = re.compile(r"(?<![A-Za-z])(?:(?i:RGB)|I(?=[-_]?[ADELN]))(?:[-_]?(?i:[ADELN]))*(?![A-Za-z])")
_SMALL = re.compile(r"(?<![A-Za-z])i[adeln]+(?![A-Za-z])")
_DATASET = re.compile(rf"(?<![A-Za-z])({'|'.join(LETTERS)})(?![A-Za-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Name:
    """What a file's name, or the folder's that it lies in, says; None where it says nothing."""

    dataset: str | None = None
    sensors: str | None = None
    """Letters, such as ``RGBDEL``."""
    epoch: int | None = None
    miou: float | None = None
    """Percent."""
    recipe: str | None = None
    """The shipped recipe that the folder is named after."""

    def modalities(self, dataset: str) -> tuple[str, ...] | None:
        """The sensors in a data set's words, or None where they are not that data set's."""
        if self.sensors is None or dataset not in LETTERS:
            return None
        known = LETTERS[dataset]
        first = "RGB" if self.sensors.startswith("RGB") else "I"
        letters = (first, *self.sensors.removeprefix(first))
        if len(set(letters)) < len(letters) or not known.keys() >= set(letters):
            return None
        return tuple(known[letter] for letter in letters)

    def datasets(self) -> list[str]:
        """The data sets that it can mean."""
        if self.dataset is not None:
            return [self.dataset]
        return [dataset for dataset in LETTERS if self.modalities(dataset)] if self.sensors else []


def read_name(path: Path) -> Name:
    """Read a file's name, and where it says no sensors, that of its folder."""
    result = _RESULT.search(path.stem)
    epoch, miou = (int(result["epoch"]), float(result["miou"])) if result else (None, None)
    said = _words(path.stem)
    if said.sensors is None and result:  # only then is the folder the training code's
        folder = path.absolute().parent.name
        if folder in recipes.shipped():
            said = Name(recipe=folder)
        elif _DATASET.search(folder) and _words(folder).sensors:
            said = _words(folder)
    is_score = miou is not None and miou <= 100
    return Name(said.dataset, said.sensors, epoch, miou if is_score else None, said.recipe)


def choose_recipe(path: Path, *, recipe: str | None, modalities: tuple[str, ...] | None) -> Recipe:
    """The recipe that weights were trained by, from the file's name and what the user says.

    Args:
        path: the file.
        recipe: a shipped recipe's name or a .yaml file; None: the shipped one that fits the name.
        modalities: in the order of training; None: the name's, else the recipe's.

    Raises:
        UsageError: the name and the options contradict each other, or do not say enough.
    """
    said = read_name(path)
    if recipe is None and said.recipe is not None:
        recipe = said.recipe
    base = recipes.load(recipe, with_extensions=True) if recipe is not None else _shipped(path, said, modalities)
    dataset = base.data.dataset
    chosen = modalities or (said.modalities(dataset) if recipe is None else None) or base.data.modalities
    _refuse_contradiction(path, said, dataset=dataset, chosen=chosen)
    content = base.model_dump(mode="json")
    content["data"]["modalities"] = list(chosen)
    return recipes.parse(content, where="--modalities")


def _words(text: str) -> Name:
    dataset = _DATASET.search(text)
    found = _SENSORS.search(text) or (_SMALL.search(text) if dataset else None)
    return Name(
        dataset=dataset[1].lower() if dataset else None,
        sensors=re.sub("[-_]", "", found[0]).upper() if found else None,
    )


def _shipped(path: Path, said: Name, modalities: tuple[str, ...] | None) -> Recipe:
    """The shipped recipe of the data set and modalities that the name says."""
    possible = said.datasets()
    if not possible and modalities is not None:
        possible = [name for name, letters in LETTERS.items() if set(letters.values()) >= set(modalities)]
    # RGB-D is DELIVER's: of MCubeS, only I-A, I-A-D and I-A-D-N were ever published. RGB alone could be either.
    if len(possible) > 1 and said.sensors in {"RGBD", "ID"}:
        possible = ["deliver"]
    if len(possible) != 1:
        raise UsageError(_ask(path, "which data set and modalities they were trained with"))
    chosen = modalities or said.modalities(possible[0])
    if chosen is None:
        raise UsageError(_ask(path, f"which modalities of {possible[0]} they were trained with"))
    of_dataset = [each for each in map(recipes.load, recipes.shipped()) if each.data.dataset == possible[0]]
    exact = [each for each in of_dataset if each.data.modalities == chosen]
    return (exact or of_dataset)[0]


def _ask(path: Path, what: str) -> str:
    known = ", ".join(name for name in recipes.shipped() if recipes.load(name).data.dataset in LETTERS)
    return (
        f"{shown(path)}: neither the tensors nor the file's name say {what}; "
        f"give --recipe ({known}) or --recipe and --modalities, in the order of the training"
    )


def _refuse_contradiction(path: Path, said: Name, *, dataset: str, chosen: tuple[str, ...]) -> None:
    """The name speaks only of the data sets that upstream has."""
    if dataset not in LETTERS:
        return
    named = said.modalities(dataset)
    is_other = said.sensors is not None and named != chosen
    if is_other or said.dataset not in {None, dataset}:
        words = " ".join(filter(None, (said.dataset, said.sensors)))
        meaning = f" ({', '.join(named)})" if named else ""
        raise UsageError(
            f"{shown(path)}: its name says {words}{meaning}, "
            f"but the options mean {dataset} with {', '.join(chosen)}; leave --recipe and --modalities away, "
            "give what the name says, or rename the file if its name is wrong"
        )
