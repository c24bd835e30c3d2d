"""The model card of trained weights, and the files to upload to the Hugging Face Hub.

First the facts about weights are collected, then the card is rendered section by section, then the upload is planned.
At the end are functions for Markdown, in which foreign text is always escaped.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from memorysam_cli.data.statistics import range_text
from memorysam_cli.engine import run_folder
from memorysam_cli.errors import DataError
from memorysam_cli.model import WeightsCard, read_card
from memorysam_cli.report import console
from memorysam_cli.storage import documents, tensors
from memorysam_cli.storage.hub import CARD, Upload
from memorysam_cli.text import command, counted, shown

LICENSE = "apache-2.0"
"""The licenses of SAM 2, on which all weights are based, and of memorysam."""
LIBRARY = "memorysam"
RECIPE = "recipe.yaml"
_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")
_ABSOLUTE = re.compile(r"^(?:~|/|[A-Za-z]:[\\/]).*[\\/]")
_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")


@dataclass(frozen=True)
class CardFacts:
    """The content of a card."""

    file: Path
    digest: str
    """SHA-256 of the file."""
    card: WeightsCard
    command: str | None
    """The training command, without local paths; None if unknown."""
    evaluations: tuple[dict[str, Any], ...]
    """Reports of ``memorysam evaluate`` on exactly these weights with all their sensors."""


def gather(path: Path) -> CardFacts:
    """Collect everything that is known about weights.

    Args:
        path: a weights file of ours.

    Raises:
        WeightsError: it is not a weights file, or damaged.
    """
    card, digest, run = read_card(path), tensors.sha256(path), run_folder.run_of(path)
    trained_by = None
    if run is not None and (run / "command.txt").is_file():
        trained_by = public_command((run / "command.txt").read_text(encoding="utf-8", errors="replace")) or None
    places = [run / "evaluate"] if run is not None else []
    places.append(Path("evaluate") / f"{path.stem}-{digest[:8]}")
    evaluations = tuple(report for place in places for report in _reports(place) if _is_of(report, card, digest))
    return CardFacts(path, digest, card, trained_by, evaluations)


def _reports(folder: Path) -> list[dict[str, Any]]:
    """The evaluations below a folder, sorted by name; unreadable ones are reported."""
    reports = []
    for path in sorted(folder.rglob("metrics.json")) if folder.is_dir() else ():
        try:
            reports.append(_report(path))
        except DataError as error:
            console.warn(f"{error}; the card is written without it")
    return reports


def _report(path: Path) -> dict[str, Any]:
    """The part of an evaluation that a card shows."""
    report = documents.read_object(path)
    with documents.understood(path):
        classes = [
            {"name": str(each["name"]), "iou": float(each["iou"]), "f1": float(each["f1"])}
            for each in report["classes"]
        ]
        return {
            "split": str(report["split"]),
            "protocol": str(report["protocol"]),
            "protocols": {str(name): {"miou": float(part["miou"])} for name, part in report["protocols"].items()},
            "classes": classes,
            "warnings": [str(each) for each in report.get("warnings", [])],
            **{key: report.get(key) for key in ("modalities", "weights_sha256", "tta", "tile")},
        }


def _is_of(report: dict[str, Any], card: WeightsCard, digest: str) -> bool:
    """Whether a report is of these weights with all sensors and default settings."""
    is_whole = report.get("modalities") == [modality.name for modality in card.modalities]
    return report.get("weights_sha256") == digest and is_whole and not report.get("tta") and not report.get("tile")


def public_command(text: str) -> str:
    """A command line without local paths; empty if it is cut off."""
    try:
        words = shlex.split(text)
    except ValueError:
        return ""
    parts = [word.partition("=") for word in words]
    shown = ["".join((key, equals, _public(value))) if equals else _public(key) for key, equals, value in parts]
    if shown:
        shown[0] = PurePath(shown[0]).name
    return shlex.join(shown)


def _public(text: str) -> str:
    """The last part of an absolute path; other text unchanged."""
    return _ABSOLUTE.sub("…/", text.strip()) if _ABSOLUTE.match(text.strip()) else text


def render(facts: CardFacts, *, license: str = LICENSE, repo: str | None = None) -> str:
    """The card as Markdown, after the YAML for the Hub.

    Args:
        facts: from :func:`gather`.
        license: an identifier of the Hub.
        repo: the repository, for the usage examples.
    """
    card = facts.card
    sections = [
        f"---\n{_front_matter(facts, license=license)}---",
        f"# {plain(_title(card))}",
        _what(card),
        "## Scores\n\n" + _scores(facts),
        "## Sensors\n\n" + _sensors(card),
        "## Classes\n\n" + _classes(card),
        "## How to use it\n\n" + _use(facts, repo=repo),
        "## Provenance\n\n" + _provenance(facts),
        "## Recipe\n\n" + fenced("yaml", public_recipe(card)),
        "## Limits\n\n" + _limits(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _title(card: WeightsCard) -> str:
    sensors = "+".join(modality.name for modality in card.modalities)
    return f"MemorySAM {card.recipe.name} ({card.dataset.title}, {sensors})"


def _front_matter(facts: CardFacts, *, license: str) -> str:
    """The YAML block, written by the Hub's own client."""
    from huggingface_hub import EvalResult, ModelCardData

    card, info = facts.card, facts.card.dataset
    where: dict[str, Any] = {"dataset_type": _slug(info.name), "dataset_name": line(info.title)}
    results = [
        EvalResult(
            task_type="image-segmentation", metric_type="mean_iou", metric_name=f"mIoU ({line(protocol)})",
            metric_value=round(miou, 2), dataset_split=line(split), **where,
        )
        for split, protocol, miou in _headlines(facts)
    ]  # fmt: skip
    tags = ["semantic-segmentation", "multi-modal", "sam2", "memorysam", *(_slug(m.name) for m in card.modalities)]
    data = ModelCardData(
        license=license, library_name=LIBRARY, pipeline_tag="image-segmentation", tags=list(dict.fromkeys(tags)),
        base_model=_base_model(card), datasets=[_slug(info.name)], metrics=["mean_iou"],
        model_name=line(_title(card)), eval_results=results or None,
    )  # fmt: skip
    if not results:
        del data.model_name  # a model index needs results
    text: str = data.to_yaml()
    return text.rstrip("\n") + "\n"


def _headlines(facts: CardFacts) -> list[tuple[str, str, float]]:
    """Split, protocol and mIoU in %: from the evaluations, or from the validation stored in the weights."""
    scores: dict[tuple[str, str], float] = {}
    for report in facts.evaluations:
        for protocol, part in report["protocols"].items():
            scores.setdefault((report["split"], protocol), float(part["miou"]))
    metric = facts.card.metric
    if metric is not None:
        scores.setdefault((metric.split, metric.protocol), metric.miou)
    return [(split, protocol, miou) for (split, protocol), miou in scores.items()]


def _base_model(card: WeightsCard) -> str | None:
    kind, _, rest = card.base.source.partition(":")
    return rest.rpartition("/")[0] or None if kind == "hub" else None


def _slug(text: str) -> str:
    """A text as the Hub allows it for a name or a tag."""
    return _PLAIN.sub("-", text).strip("-.") or "unnamed"


def _what(card: WeightsCard) -> str:
    sensors = ", ".join(plain(modality.name) for modality in card.modalities)
    count = len(card.modalities)
    return (
        f"Semantic segmentation of {counted(len(card.dataset.classes), 'class')} from {counted(count, 'sensor')} "
        f"({sensors}), trained on {plain(card.dataset.title)}. The network is MemorySAM (arXiv 2503.06700): SAM 2's "
        f"video memory ({plain(card.recipe.model.backbone)}) runs across the aligned images of one scene."
    )


def _scores(facts: CardFacts) -> str:
    rows = [(plain(split), plain(protocol), f"{miou:.2f}") for split, protocol, miou in _headlines(facts)]
    if not rows:
        return "None are known: these weights were not validated."
    lines = [table(("split", "protocol", "mIoU (%)"), rows)]
    lines.append(
        "`resized`: scored at the network's size, as papers report it; `native`: at the images' own. The mean is over "
        "all classes, and one that is absent counts 0."
    )
    for report in facts.evaluations[:1]:
        each = sorted(report["classes"], key=lambda one: -one["iou"])
        rows = [(plain(str(one["name"])), f"{one['iou']:.2f}", f"{one['f1']:.2f}") for one in each]
        lines.append(f"Per class ({plain(report['split'])}, {plain(report['protocol'])}):")
        lines.append(table(("class", "IoU (%)", "F1 (%)"), rows))
        lines += [f"> {plain(line)}" for line in report.get("warnings", [])]
    return "\n\n".join(lines)


def _sensors(card: WeightsCard) -> str:
    rows = []
    for modality in card.modalities:
        scaled = "by type" if modality.scale is None else f"× {modality.scale:g} + {modality.offset:g}"
        normal = "–"
        if modality.mean is not None and modality.std is not None:
            normal = f"{_numbers(modality.mean)} / {_numbers(modality.std)}"
        stored, gone = "–", modality.nodata
        if (values := card.dataset.ranges.get(modality.name)) is not None:
            stored, gone = range_text(values), values.nodata
        nodata = ", ".join(f"{value:.7g}" for value in gone) or "–"
        rows.append((plain(modality.name), plain(modality.kind), plain(stored), nodata, scaled, normal))
    smooth = [plain(modality.name) for modality in card.modalities if modality.antialias]
    antialiased = f" Where they shrink, {', '.join(smooth)} are antialiased." if smooth else ""
    note = (
        f"Images are seen at {card.image_size} px (short side).{antialiased} "
        f"All sensors of a scene must show the same view.{_trained_sets(card)}"
    )
    gaps = "NaN, infinity and nodata become 0 after normalization."
    return table(("sensor", "kind", "stored as", "nodata", "values", "mean / std"), rows) + f"\n\n{note} {gaps}"


def _trained_sets(card: WeightsCard) -> str:
    """The sets of sensors in training, if there are several."""
    recipe = card.recipe
    some, *others = recipe.sensors.values()
    if not others:
        return ""
    ways = [way for way, zeroed in (("left out", False), ("zeros", True)) if recipe.trains_on(some, zeroed=zeroed)]
    if not ways:
        return " Training always showed all of them: expect worse results where one is missing."
    return f" Training also showed every combination of some of them, the others {' or '.join(ways)}."


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _classes(card: WeightsCard) -> str:
    both = zip(card.dataset.classes, card.dataset.palette, strict=True)
    rows = [
        (str(number), plain(name), f"`#{red:02x}{green:02x}{blue:02x}`")
        for number, (name, (red, green, blue)) in enumerate(both)
    ]
    return table(("id", "class", "color"), rows)


def _use(facts: CardFacts, *, repo: str | None) -> str:
    address = f"hf://{repo}/{facts.file.name}" if repo else facts.file.name
    sensors = ", ".join(repr(modality.name) for modality in facts.card.modalities)
    predict = command("predict", "SCENES", "--weights", address, "--out", "predictions")
    shell = f"pip install memorysam\n{predict}\n"
    python = (
        "import torch\n"
        "from memorysam_cli.model import load\n\n"
        f"network = load({address!r})\n"
        f"# One (B, 3, H, W) float32 tensor per sensor, normalized as above: {sensors}\n"
        f"size = {facts.card.image_size}\n"
        "frames = [torch.zeros(1, 3, size, size) for _ in network.card.modalities]\n"
        "with torch.inference_mode():\n"
        "    classes = network.logits(frames).argmax(dim=1)  # (B, H, W)\n"
    )
    return f"{fenced('console', shell)}\n\n{fenced('python', python)}"


def _provenance(facts: CardFacts) -> str:
    card = facts.card
    rows = [
        ("file", code(facts.file.name)),
        ("SHA-256", code(facts.digest)),
        ("base weights", f"{plain(_base_source(card))} (SHA-256 {code(card.base.sha256 or '–')})"),
        ("LoRA and class tokens", {"trained": "in this file; the base is fetched", "complete": "all in this file",
                                   "merged": "all in this file, LoRA folded in"}[card.kind]),
        ("data set", f"{plain(card.dataset.title)} ({code(card.dataset.name)})"),
        ("its content", code(card.dataset.content_hash or "–")),
        ("seed", str(card.recipe.train.seed)),
        ("made with", plain(", ".join(f"{name} {version}" for name, version in card.versions.items()))),
    ]  # fmt: skip
    if card.metric is not None and card.metric.step is not None:
        rows.append(("chosen at", f"step {card.metric.step}, epoch {card.metric.epoch}"))
    text = table(("", ""), rows)
    return text if facts.command is None else f"{text}\n\nTrained by:\n\n{fenced('console', facts.command)}"


def _base_source(card: WeightsCard) -> str:
    kind, _, rest = card.base.source.partition(":")
    return f"file:…/{PurePath(rest).name}" if kind == "file" else card.base.source


def public_recipe(card: WeightsCard) -> str:
    """The recipe as YAML, without local paths."""
    if card.recipe.extensions:
        names = tuple(f"…/{PurePath(file).name}" for file in card.recipe.extensions)
        card = card.model_copy(update={"recipe": card.recipe.model_copy(update={"extensions": names})})
    return re.sub(r"(?<=: )(['\"]?)(?:~|/)[^\n]*/([^/\n]*)$", r"\1…/\2", card.recipe.to_yaml(), flags=re.MULTILINE)


def _limits(facts: CardFacts) -> str:
    card = facts.card
    lines = [
        f"It knows the {counted(len(card.dataset.classes), 'class')} above and gives each pixel one of them, even if "
        "the pixel shows something else.",
        f"It was trained on {plain(card.dataset.title)}; other cameras, places and weather may score far less. "
        "Score it on your own data first: `memorysam evaluate`, and `--robustness` for failing sensors.",
        "The sensors must be aligned to each other, pixel by pixel.",
        "The license above is that of the weights' base and code; the terms of the data set may be stricter.",
        "It is not made for safety-critical decisions.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def plan(repo: str, path: Path, *, license: str, with_card: bool, private: bool, replaces_card: bool) -> Upload:
    """The files of a repository for weights, which are read completely first, so that damaged ones are not published.

    Args:
        repo: ``owner/name``.
        path: a weights file of ours.
        license: an identifier of the Hub.
        with_card: whether to add a README.md.
        private: for a new repository.
        replaces_card: whether a different existing README.md may be replaced.

    Raises:
        WeightsError: they are damaged, not ours, or their base cannot be loaded.
    """
    from memorysam_cli.model.weights import load_unmerged

    load_unmerged(path)
    facts = gather(path)
    if facts.card.kind == "trained" and facts.card.base.source.startswith("file:"):
        console.warn(
            f"{path}: needs base weights that only this machine has; others cannot use it: send what "
            "`memorysam weights merge` makes of it"
        )
    text = {CARD: render(facts, license=license, repo=repo).encode()} if with_card else {}
    recipe = public_recipe(facts.card).encode()
    return Upload(repo, {path.name: path, **text, RECIPE: recipe}, private=private, replaces_card=replaces_card)


def sizes(upload: Upload) -> dict[str, int]:
    """Name → bytes of the files to send."""
    return {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in upload.files.items()
    }


def line(text: str) -> str:
    """Text on one line, without control characters and backticks, to be put between backticks."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace("`", "'")


def code(text: str) -> str:
    """Text on one line as code, also in a table, where a bar would end the cell even between backticks."""
    return f"`{line(text).replace('|', chr(92) + '|')}`"


def plain(text: str) -> str:
    """Text on one line, escaped for Markdown and HTML, also in a table; nothing becomes a link."""
    safe = line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    linkless = safe.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")
    return _SPECIAL.sub(r"\\\1", linkless)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are already Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def fenced(language: str, text: str) -> str:
    """A block of code with a fence longer than any in it; control characters are escaped."""
    text = shown(text, keep="\n\t")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
