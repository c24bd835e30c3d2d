"""Base weights: SAM2's published checkpoints, a local file, or nano's own; loaded completely or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from memorysam_cli.dataset import Strict
from memorysam_cli.errors import WeightsError
from memorysam_cli.model import ledger
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.model.parts import is_fresh
from memorysam_cli.model.reference import reference_shapes
from memorysam_cli.recipe import BACKBONES
from memorysam_cli.storage import foreign, hub, tensors
from memorysam_cli.text import shown

NANO = Path(__file__).parent / "nano.safetensors"
_FITTING = "give the file that belongs to model.backbone"


@dataclass(frozen=True)
class Published:
    """One file on the Hugging Face Hub."""

    repository: str
    filename: str
    sha256: str


def _published(version: str, size: str, sha256: str) -> Published:
    return Published(
        f"facebook/{version}-hiera-{size}", f"{version}_hiera_{size.replace('-', '_')}.pt", sha256
    )  # fmt: skip


PUBLISHED = {
    f"{version}-hiera-{size}": _published(version, size, sha256)
    for version, size, sha256 in (
        ("sam2", "tiny", "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125"),
        ("sam2", "small", "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3"),
        ("sam2", "base-plus", "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071"),
        ("sam2", "large", "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b"),
        ("sam2.1", "tiny", "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
        ("sam2.1", "small", "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
        ("sam2.1", "base-plus", "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
        ("sam2.1", "large", "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
    )
}
"""SHA-256 sums: METHOD §8."""


class Base(Strict):
    """Which base weights a network was built on; carried by every checkpoint that does not contain them."""

    backbone: str
    source: str
    """``hub:facebook/…``, ``package``, ``random:SEED``, ``file:PATH``, or ``import:NAME`` of complete weights."""
    sha256: str
    """Of the file; of the tensors' bytes for random weights."""


def load_base(network: MemorySAM, backbone: str, *, source: str, seed: int) -> Base:
    """Fill a network that has no LoRA yet with base weights, in place.

    Args:
        source: ``published``, ``random`` (nano only), or the path of a .pt or .safetensors file.
        seed: for ``random``: the caller has initialised the network from it.

    Raises:
        WeightsError: a tensor is missing, extra or of another shape, outside the parts that start fresh.
        NetworkError: the Hub cannot be reached, or sends other bytes than were published.
    """
    if source == "random":
        return Base(backbone=backbone, source=f"random:{seed}", sha256=_digest(network))
    path, said = _find(backbone, source)
    state = tensors.read(path)[0] if path.suffix == ".safetensors" else foreign.read_torch(path)
    fill(network, {f"sam.{name}": tensor for name, tensor in state.items()}, where=str(path), backbone=backbone)
    return Base(backbone=backbone, source=said, sha256=tensors.sha256(path))


def reload_base(network: MemorySAM, base: Base, *, where: str) -> None:
    """Fill a network with the very base weights that a checkpoint was trained on.

    Args:
        where: the checkpoint, for messages.

    Raises:
        WeightsError: the base cannot be found, or is not the same.
    """
    kind, _, rest = base.source.partition(":")
    source = {"hub": "published", "package": "published", "random": "random", "file": rest}[kind]
    if kind == "file" and not Path(rest).is_file():
        raise WeightsError(
            f"{where}: needs its base weights {rest} (SHA-256 {base.sha256[:12]}…), which are not there; "
            "put them back, or use `memorysam weights merge` where they are"
        )
    found = load_base(network, base.backbone, source=source, seed=int(rest) if kind == "random" else 0)
    if found.sha256 != base.sha256:
        raise WeightsError(
            f"{where}: was trained on base weights with SHA-256 {base.sha256[:12]}…, but {found.source} has "
            f"{found.sha256[:12]}…; use the base it was trained on"
        )


def fill(network: MemorySAM, state: dict[str, Tensor], *, where: str, backbone: str) -> None:
    """Copy base tensors into a network; every tensor is accounted for or the load is refused."""
    given, wanted = (
        # Named as in SAM2's files.
        {name.removeprefix("sam."): tensor for name, tensor in part.items() if not is_fresh(name)}
        for part in (state, network.state_dict())
    )
    fits = not ledger.difference(ledger.shapes(given), ledger.shapes(wanted))
    remedy = _FITTING if fits else _resemblance(ledger.shapes(given), backbone)
    ledger.copy(given, wanted, where=where, whose=backbone, remedy=remedy)


def _resemblance(given: ledger.Shapes, backbone: str) -> str:
    """What a file that does not fit looks like, and so what to do with it."""
    if any(".linear_a_q." in name or ".lora_" in name for name in given):
        return "these are MemorySAM's weights, not SAM 2's; `memorysam weights import` takes the authors' .pth"
    fitting = {name: ledger.fitting(given, base_shapes(name)) for name in BACKBONES}
    if not any(fitting.values()):
        prefix = next(iter(given), "").partition(".")[0] + "."
        bare = {name.removeprefix(prefix): shape for name, shape in given.items()}
        if ledger.fitting(bare, base_shapes(backbone)):
            return f"its names begin with '{shown(prefix[:80])}', which SAM 2's do not: save it without"
        return f"it looks like none of SAM 2's; {_FITTING}"
    looks = max(BACKBONES, key=lambda name: (fitting[name], -len(base_shapes(name).keys() ^ given.keys())))
    if looks == backbone:
        return f"it looks like a {backbone} that was changed or is not whole; get the file again"
    return f"this looks like {looks}; set model.backbone to it, or {_FITTING}"


def base_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that a backbone's base weights must provide, named as in SAM2's files."""
    plain = {name.replace(".qkv.qkv.", ".qkv."): shape for name, shape in _all_shapes(backbone).items()}
    return {name: shape for name, shape in plain.items() if not is_fresh(f"sam.{name}")}


@cache
def _all_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    shapes = reference_shapes(backbone, tokens=3, rank=1)
    return {name.removeprefix("sam."): shape for name, shape in shapes.items() if ".linear_" not in name}


def _find(backbone: str, source: str) -> tuple[Path, str]:
    """The file that a source means, fetched if need be, and how a checkpoint names it."""
    if source != "published":
        path = Path(source).expanduser()
        if not path.is_file():
            raise WeightsError(f"model.base_weights: {path} is not a file")
        return path, f"file:{path.resolve()}"
    if backbone == "nano":
        if not NANO.is_file():
            raise WeightsError(f"{NANO}: nano's weights are missing from this installation; reinstall memorysam")
        return NANO, "package"
    published = PUBLISHED[backbone]
    path = hub.fetch(published.repository, published.filename, sha256=published.sha256)
    return path, f"hub:{published.repository}/{published.filename}"


def _digest(network: MemorySAM) -> str:
    """SHA-256 over the names and bytes of the tensors that a base provides."""
    state = {name: tensor for name, tensor in network.state_dict().items() if not is_fresh(name)}
    return tensors.digest(state)
