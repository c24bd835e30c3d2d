"""Block D: a file that lost its end or changed one bit is noticed, whichever file and whichever bit."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from memorysam_cli.engine.train import checkpoints
from memorysam_cli.errors import WeightsError
from memorysam_cli.model import read_card, weights
from memorysam_cli.model.base_weights import reload_base
from memorysam_cli.storage import foreign, tensors, torch_format
from tests.commands.trained import save_weights
from tests.engine.stand_ins import write_data
from tests.faults import malice
from tests.faults.conftest import Figures
from tests.faults.naive import loading
from tests.faults.scale import amount

CUTS, FLIPS = amount(400, soak=4000, few=100), amount(600, soak=6000, few=150)
EXAMPLES = amount(1000, soak=20_000, few=250)
PARTS = ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "trainer.json", "MANIFEST.json")


def damaged(data: bytes, rng: random.Random, *, cuts: int = CUTS, flips: int = FLIPS) -> Iterator[bytes]:
    """Copies of ``data`` that were cut, anywhere from the first byte to the last, or have one other bit."""
    for _ in range(cuts):
        yield data[: rng.randrange(len(data))]
    for _ in range(flips):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def drawn(count: int, *shape: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return {f"layer.{index}.weight": torch.randn(shape, generator=generator) for index in range(count)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``checkpoints/`` with the steps 5 and 6."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (5, 6):
        position = checkpoints.Position(step=step, batch=step, best_miou=12.25)
        rng = {"torch": torch.randint(0, 256, (5056,), dtype=torch.uint8)}
        state = checkpoints.State(position, drawn(20, 8, 8), drawn(40, 8, 8), rng, identity={"lr": 1e-4})
        checkpoints.write(folder, state, keep=5)
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_s_damage_is_noticed_and_the_one_before_it_is_used(
    part: str, folder: Path, tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    for step in (5, 6):
        shutil.copytree(checkpoints.path_of(folder, step), checkpoints.path_of(tmp_path, step))
    newest, older = (checkpoints.path_of(tmp_path, step) for step in (6, 5))
    good = (newest / part).read_bytes()
    meaning = json.loads(good) if part == "MANIFEST.json" else None
    unnoticed = wrong = tried = 0
    for data in damaged(good, rng):
        (newest / part).write_bytes(data)
        tried += 1
        if checkpoints.is_valid(newest):
            # Without its last newline the manifest still says the same, and the files are those that it means.
            is_harmless = meaning is not None and json.loads(data) == meaning
            unnoticed += not is_harmless
        elif tried % 50 == 0:
            wrong += checkpoints.newest_valid(tmp_path) != (older, [newest])
            with pytest.raises(WeightsError, match="is not a valid checkpoint"):
                checkpoints.read(newest)
    figures("D", damaged=tried, unnoticed=unnoticed)
    assert unnoticed == wrong == 0
    (newest / part).write_bytes(good)
    assert checkpoints.newest_valid(tmp_path) == (newest, [])


def test_a_weights_file_s_damage_is_noticed_in_tensors_and_card(
    tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    path = save_weights(tmp_path / "best.safetensors", write_data(tmp_path / "data").info)
    state, card = weights.read(path)
    small = {name: tensor for name, tensor in state.items() if tensor.numel() < 200}
    weights._write(path, small, card)  # what is cut or flipped need not be megabytes of the same kind
    good, unnoticed = path.read_bytes(), 0
    for data in damaged(good, rng):
        path.write_bytes(data)
        try:
            found, found_card = weights.read(path)
        except WeightsError as error:
            assert "\n" not in str(error)
            continue
        # The name of the seal itself can change, and then says nothing; all that it seals is as it was.
        unnoticed += found_card != weights.WeightsCard.model_validate(card.model_copy(update={
            "tensors_sha256": found_card.tensors_sha256})) or any(
            not torch.equal(found[name], small[name]) for name in small
        )  # fmt: skip
    figures("D", damaged=CUTS + FLIPS, unnoticed=unnoticed)
    assert unnoticed == 0


def test_a_torch_archive_s_damage_is_noticed_or_touches_no_tensor(
    tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    good = malice.saved(drawn(6, 16, 16))
    unnoticed, refused = 0, 0
    for number, data in enumerate(damaged(good, rng)):
        path = tmp_path / f"{number}.pth"  # a new one each time: torch maps it
        path.write_bytes(data)
        try:
            unnoticed += is_other(foreign.parse(path, is_zip=torch_format.check_archive(path)))
        except torch_format.Refused:
            refused += 1
        path.unlink()
    figures("D", damaged=CUTS + FLIPS, unnoticed=unnoticed)
    assert unnoticed == 0 and refused > 0.8 * (CUTS + FLIPS)


def is_other(found: dict[str, torch.Tensor]) -> bool:
    wanted = drawn(6, 16, 16)
    return found.keys() != wanted.keys() or any(not torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_base_of_the_old_format_has_no_checksums_but_the_weights_trained_on_it_know_it(
    tmp_path: Path, rng: random.Random, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = write_data(tmp_path / "data").info
    trained = save_weights(tmp_path / "w.safetensors", info)
    card = read_card(trained)
    plain = card.recipe.model_copy(update={"model": card.recipe.model.model_copy(update={"encoder": "frozen"})})
    network = weights.build_for_training(plain, info)
    path = tmp_path / "base.pt"
    good = malice.saved({"model": network.sam.state_dict()}, _use_new_zipfile_serialization=False)
    path.write_bytes(good)

    def parse(path: Path) -> dict[str, torch.Tensor]:  # without a process for each
        try:
            return foreign.parse(path, is_zip=torch_format.check_archive(path))
        except torch_format.Refused as error:
            raise WeightsError(str(error)) from error

    monkeypatch.setattr("memorysam_cli.storage.foreign.read_torch", parse)
    base = weights.load_base(network, "nano", source=str(path), seed=0)
    reload_base(network, base, where="w")
    tried = 0
    for data in damaged(good, rng, cuts=0, flips=20):
        path.write_bytes(data)
        tried += 1
        with pytest.raises(WeightsError):
            reload_base(network, base, where="w")
    figures("D", damaged=tried, unnoticed=0)


def test_the_naive_loader_takes_other_weights_without_a_word(rng: random.Random, figures: Figures) -> None:
    good = malice.saved(drawn(6, 16, 16))
    silent = 0
    for data in damaged(good, rng, cuts=0, flips=300):
        try:
            silent += is_other(loading.load_weights_only(io.BytesIO(data)))  # type: ignore[arg-type]
        except Exception:  # torch has many
            continue
    figures("D", naive_unnoticed=silent)
    assert silent > 100, "this proves nothing: torch itself notices"


# --- the readers' pure parts, given anything at all ---

ANYTHING = settings(
    max_examples=EXAMPLES, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
SEEDED = seed(int(os.environ["MEMORYSAM_FAULT_SEED"]))
GOOD_ZIP = malice.saved({"a": torch.arange(16.0)})
GOOD_PICKLE = malice.inner(GOOD_ZIP)
Patch = tuple[int, bytes]
PATCHES = st.lists(st.tuples(st.integers(0, len(GOOD_ZIP)), st.binary(min_size=1, max_size=8)), max_size=4)


def patched(good: bytes, patches: list[Patch], cut: int) -> bytes:
    data = bytearray(good)
    for place, content in patches:
        begin = place % len(data)
        data[begin : begin + len(content)] = content
    return bytes(data[: cut or None])


@SEEDED
@ANYTHING
@given(patches=PATCHES, cut=st.integers(-3, 0) | st.integers(0, len(GOOD_ZIP)))
def test_the_archive_s_reader_refuses_or_accepts_and_does_nothing_else(
    tmp_path: Path, patches: list[Patch], cut: int
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(patched(GOOD_ZIP, patches, cut))
    try:
        torch_format.check_archive(path)
    except torch_format.Refused as error:
        assert str(error) and "\n" not in str(error)


@SEEDED
@ANYTHING
@given(data=st.binary(max_size=200) | PATCHES.map(lambda it: patched(GOOD_PICKLE, it, 0)))
def test_the_search_for_words_in_a_pickle_ends_quietly(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    found = torch_format.culprit(path)
    assert found is None or isinstance(found.name, str)


ENTRY = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "U8", "BOOL", "F8"]) | st.integers(),
    "shape": st.lists(st.integers(-1, 5), max_size=3) | st.none(),
    "data_offsets": st.lists(st.integers(-1, 70) | st.floats(), max_size=3) | st.text(max_size=2),
})  # fmt: skip


@SEEDED
@ANYTHING
@given(
    entries=st.dictionaries(st.text(max_size=3), ENTRY | st.integers() | st.none(), max_size=3) | st.none(),
    extra=st.binary(max_size=64),
)
def test_what_comes_through_the_pipe_is_tensors_or_refused(entries: Any, extra: bytes) -> None:
    text = json.dumps(entries).encode()
    stream = io.BytesIO(struct.pack("<Q", len(text)) + text + extra)
    try:
        found = tensors.receive(stream, most=64)
    except tensors.Malformed:
        return
    assert sum(tensor.nbytes for tensor in found.values()) <= 64 and len(found) == len(entries)
