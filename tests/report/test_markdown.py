"""Other people's words stay words."""

from __future__ import annotations

import pytest

from memorysam_cli.engine.weights import model_card


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Road line", "Road line"),
        ("a|b", r"a\|b"),
        ("a\nb\t c\x00", "a b c"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("*x* _y_ ~z~ $1$", r"\*x\* \_y\_ \~z\~ \$1\$"),
        ("[x](http://a.b)", r"\[x\](http&#58;//a.b)"),
        ("www.a.b `c`", "www&#46;a.b 'c'"),
        ("straße – 道", "straße – 道"),
        ("\x1b[2Ja\x9b1m\u202eb\udcff", r"\[2Ja 1m b"),
        ("@team a@b.c", "&#64;team a&#64;b.c"),
    ],
)
def test_nothing_of_a_name_takes_effect(given: str, expected: str) -> None:
    assert model_card.plain(given) == expected


def test_a_table_has_a_rule_below_its_columns() -> None:
    assert model_card.table(("a", "b"), [("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_code_stays_in_its_cell_of_a_table() -> None:
    assert model_card.code("a|b`c\x1b") == r"`a\|b'c`"


@pytest.mark.parametrize(("text", "fence"), [("a: 1", "```"), ("a: ````", "`````"), ("``", "```")])
def test_a_fence_is_longer_than_any_inside(text: str, fence: str) -> None:
    assert model_card.fenced("yaml", f"{text}\n\n") == f"{fence}yaml\n{text}\n{fence}"


def test_code_in_a_fence_has_no_control_characters() -> None:
    assert model_card.fenced("yaml", "a:\n\tb\x1b[2J\udcff") == "```yaml\na:\n\tb\\x1b[2J\\udcff\n```"
