"""What a new preparation replaces is kept, where people may have changed it."""

from __future__ import annotations

from dataclasses import replace

from memorysam_cli.data import manifest as manifests
from memorysam_cli.data import preparation
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.dataset import Statistics


def files(manifest: Manifest) -> set[str]:
    return {path.name for path in manifests.folder(manifest.root, manifest.info.name).iterdir()} - {"checked.jsonl"}


def keep(manifest: Manifest, **changes: object) -> list[str]:
    return preparation.keep_superseded(manifest.root, manifest.info.model_copy(update=changes), manifest.scenes)


def test_what_was_only_found_is_no_difference(prepared: Manifest) -> None:
    found = Statistics(split="train", scenes=1, mean=(0, 0, 0), std=(1, 1, 1), low=0, high=1)
    assert keep(prepared, counts={}, content_hash="", statistics={"img": found}) == []
    assert files(prepared) == {"dataset.json", "scenes.jsonl"}


def test_other_settings_are_named_and_the_earlier_file_is_kept(prepared: Manifest) -> None:
    place = manifests.folder(prepared.root, prepared.info.name)
    before = (place / "dataset.json").read_bytes()
    first, *others = prepared.info.modalities
    changed = (first.model_copy(update={"interpolation": "nearest"}), *others)
    (line,) = keep(prepared, modalities=changed, title="Other")
    assert f"dataset.json: title, modalities.{first.name}.interpolation had other values before" in line
    assert (
        f"kept as dataset.json.bak (to use it, put it back and type: memorysam prepare manifest {prepared.root}" in line
    )
    assert (place / "dataset.json.bak").read_bytes() == before


def test_an_earlier_copy_is_never_lost(prepared: Manifest) -> None:
    place = manifests.folder(prepared.root, prepared.info.name)
    (place / "dataset.json.bak").write_text("the user's own")
    assert "kept as dataset.json.bak2" in keep(prepared, title="Other")[0]
    assert "kept as dataset.json.bak2" in keep(prepared, title="Third")[0], "the same content is not copied twice"
    assert (place / "dataset.json.bak").read_text() == "the user's own"
    assert files(prepared) == {"dataset.json", "dataset.json.bak", "dataset.json.bak2", "scenes.jsonl"}


def test_a_damaged_file_is_kept_too(prepared: Manifest) -> None:
    place = manifests.folder(prepared.root, prepared.info.name)
    (place / "dataset.json").write_text("{")
    (place / "scenes.jsonl").write_text('["no scene"]\n')
    assert [line.partition(": ")[2].partition(";")[0] for line in keep(prepared)] == ["was damaged", "was damaged"]
    assert (place / "dataset.json.bak").read_text() == "{"


def test_scenes_that_come_go_and_change_are_counted(prepared: Manifest) -> None:
    one, two, *others = prepared.scenes
    listed = [replace(two, condition="snow"), *others, replace(one, id="new")]
    (line,) = preparation.keep_superseded(prepared.root, prepared.info, listed)
    assert f"scenes.jsonl: scenes differ from before: 1 more, 1 fewer, 1 changed (e.g. {two.id})" in line
    assert preparation.keep_superseded(prepared.root, prepared.info, prepared.scenes) == []
