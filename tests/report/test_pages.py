from __future__ import annotations

from typing import Any

import pytest

from memorysam_cli.report import pages


def picture(key: str) -> dict[str, str]:
    return {"key": key, "title": key.title(), "src": "data:image/png;base64,"}


def scene(name: str, *keys: str) -> dict[str, Any]:
    return {"name": name, "caption": "", "layers": [picture(key) for key in keys]}


def prediction(*scenes: dict[str, Any]) -> str:
    empty: dict[str, Any] = {"shares": [], "failures": [], "failures_more": 0, "provenance": [], "legend": []}
    head: dict[str, Any] = {"kind": "prediction", "subtitle": "", "warnings": [], "sections": [], "tiles": []}
    return pages.render("prediction", title="a title", scenes=scenes, scenes_note="", **head, **empty)


def test_long_names_may_go_on_in_the_next_line_after_each_of_their_parts() -> None:
    assert "cloud/<wbr>MAP_<wbr>1</bdi>" in prediction(scene("cloud/MAP_1", "prediction"))


def test_the_parts_of_a_name_are_escaped() -> None:
    text = prediction(scene("a/</script><b>_&", "prediction"))
    assert "a/<wbr>&lt;/<wbr>script&gt;&lt;b&gt;_<wbr>&amp;</bdi>" in text
    assert text.count("</script>") == text.count("<script")


def test_a_layer_that_only_a_later_scene_has_can_be_chosen_and_none_twice() -> None:
    text = prediction(scene("a", "img", "prediction"), scene("b", "img", "depth", "prediction"))
    for side in ("left", "right"):
        assert [text.count(f'name="{side}" value="{key}"') for key in ("img", "depth", "prediction")] == [1, 1, 1]
    assert text.index('value="img"') < text.index('value="depth"') < text.index('value="prediction"')


def test_errors_and_confidence_are_explained_where_they_are_shown() -> None:
    assert "Errors are red" in prediction(scene("a", "img", "prediction", "error"))
    assert "Errors are red" not in prediction(scene("a", "img", "prediction"))


def test_a_fact_that_is_missing_is_an_error_and_no_gap() -> None:
    with pytest.raises(LookupError, match="title"):
        pages.render("prediction", kind="prediction")
