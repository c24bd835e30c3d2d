from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage import documents


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr: 1e-4", {"lr": 0.0001}),
        ("1E3", 1000.0),
        ("[1., .5, -2.5e+3, +1]", [1.0, 0.5, -2500.0, 1]),
        ("[0, -0, 10, 123456789]", [0, 0, 10, 123456789]),
        ("[on, off, yes, no, y, n]", ["on", "off", "yes", "no", "y", "n"]),
        ("[true, False, null, ~, ]", [True, False, None, None]),
        ("a:", {"a": None}),
        ("[1_000, 0x1f, 0o17, 12:30:45, 2024-01-02, 1.2.3, e5, .]", None),
        ("['010', \"1e-4\", 'true', 'nan', '']", ["010", "1e-4", "true", "nan", ""]),
        ("{1: a, true: b, on: c}", {"1": "a", "true": "b", "on": "c"}),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        ("a: é  # comment", {"a": "é"}),
        ("", None),
        ("# only a comment", None),
    ],
)
def test_yaml_means_what_it_says(text: str, value: Any) -> None:
    if value is None and text.startswith("["):
        value = text.strip("[]").split(", ")
    found = documents.parse_yaml(text, where="here")
    assert found == value
    assert json.dumps(found) == json.dumps(value)  # 1 is not 1.0 and not true


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3", 3, "'a' is given twice (first on line 1)"),
        ("x:\n  a: 1\n  a: 1", 3, "'a' is given twice"),
        ("fold: 010", 1, "010 has a leading zero"),
        ("a: -007", 1, "leading zero"),
        ("a: !!python/object/apply:os.system [x]", 1, "python/object/apply:os.system"),
        ("b: 1\na: !!str 3", 2, "tag"),
        ("a: !x 3", 1, "tag '!x'"),
        ("a: &b [1]\nc: *b", 1, "anchors"),
        ("c: *b", 1, "anchors"),
        ("a:\n\tb: 1", 2, "a tab in the indentation"),
        ("a: .nan", 1, "not a finite number"),
        ("a: NaN", 1, "not a finite number"),
        ("a: -.inf", 1, "not a finite number"),
        ("a: 1e999", 1, "too large"),
        ("a: 12345678901234567890", 1, "too large"),
        ("a: b: c", 1, "not valid YAML"),
        ("a: [1, 2\nb: 3", 2, "not valid YAML"),
        ("a\n---\nb", 2, "single document"),
        ("? [a]\n: 1", 1, "a key must be a word"),
        ("a: 1\nb: \x07", 2, "U+0007"),
        ("a: \udcff", 1, "U+DCFF"),
        ("[" * 3000, 1, "nested deeper than 20"),
        ("- " * 3000 + "x", 1, "nested deeper than 20"),
        ("{a: " * 3000, 1, "nested deeper than 20"),
    ],
)
def test_yaml_that_could_mislead_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    started = time.process_time()
    with pytest.raises(UsageError) as caught:
        documents.parse_yaml(text, where="r.yaml")
    assert time.process_time() - started < 10
    message = str(caught.value)
    assert message.startswith(f"r.yaml:{line}: ")
    assert words in message
    assert "\n" not in message


def test_twenty_levels_are_allowed_and_one_more_is_not() -> None:
    assert documents.parse_yaml("[" * 20 + "]" * 20, where="x")
    with pytest.raises(UsageError, match="deeper"):
        documents.parse_yaml("[" * 21 + "]" * 21, where="x")


@settings(derandomize=True, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**15), 10**15)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(
            st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufeff\ufffe\uffff")
        ),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcdef", min_size=1), inner, max_size=3),
        max_leaves=8,
    )
)
def test_every_json_value_is_read_back_as_yaml(value: Any) -> None:
    assert documents.parse_yaml(documents.to_json(value), where="x") == value


def test_files_are_refused_by_name(tmp_path: Path) -> None:
    cases: dict[str, tuple[bytes | None, str]] = {
        "missing.yaml": (None, "no such file"),
        "big.yaml": (b"a" * 1_000_001, "1 MB allowed"),
        "latin.yaml": (b"a: 1\nb: \xe9", ":2: not UTF-8"),
        "tab.yaml": (b"a:\n\tb: 1", ":2: a tab"),
    }
    for name, (data, words) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=words) as caught:
            documents.read_yaml(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
    with pytest.raises(UsageError, match="not a file"):
        documents.read_yaml(tmp_path)
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert documents.read_yaml(tmp_path / "bom.yaml") == {"a": 1}


def test_json_keeps_values_order_and_names_of_any_bytes(tmp_path: Path) -> None:
    value = {"b": [1, 1.5, None, True, "é\n"], "a": {"file": "x\udcff.png"}}
    documents.write_json(tmp_path / "x.json", value)
    found = documents.read_json(tmp_path / "x.json")
    assert found == value
    assert list(found) == ["b", "a"]
    assert documents.to_json({"é": "日"}) == '{"é": "日"}'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_never_holds_nan(number: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        documents.to_json({"miou": [number]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        documents.write_json(tmp_path / "x.json", number)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"nan", b"[NaN]", b"[Infinity]", b'{"a": 1, "a": 2}', b"\xff", b"[1] x", b"[" * 100_000],
)
def test_bad_json_is_refused_by_name(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(DataError) as caught:
        documents.read_json(tmp_path / "x.json")
    assert str(caught.value).startswith(f"{tmp_path / 'x.json'}: not valid JSON")
    assert "\n" not in str(caught.value)


def test_lines_are_appended_and_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.jsonl"
    for number in range(3):
        documents.append_json_line(path, {"n": number, "text": "a\nb\u2028c"}, fsync=number == 2)
    assert documents.read_json_lines(path) == [{"n": n, "text": "a\nb\u2028c"} for n in range(3)]
    assert path.read_bytes().count(b"\n") == 3


def test_a_line_torn_at_any_byte_is_left_out_and_the_next_one_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    first, second = b'{"scene": "a"}\n', '{"scene": "bé", "pixels": [12, 345]}\n'.encode()
    for cut in range(len(second)):
        path.write_bytes(first + second[:cut])
        whole = [{"scene": "a"}] + ([{"scene": "bé", "pixels": [12, 345]}] if cut == len(second) - 1 else [])
        assert documents.read_json_lines(path) == whole
        documents.append_json_line(path, {"scene": "c"})
        assert documents.read_json_lines(path) == [*whole, {"scene": "c"}]


def test_a_long_torn_line_is_cut_at_its_start(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for before in (b"", b"[1]\n"):
        path.write_bytes(before + b'["' + b"x" * 10_000)
        documents.append_json_line(path, [2])
        assert path.read_bytes() == before + b"[2]\n"


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n{"a": 2}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:3: not valid JSON"):
        documents.read_json_lines(path)
    with pytest.raises(DataError, match="no such file"):
        documents.read_json_lines(tmp_path / "y.jsonl")


def test_reading_documents_loads_nothing_heavy() -> None:
    code = (
        "import sys; from memorysam_cli.storage import atomic, documents, lock; "
        "print([m for m in ('torch', 'numpy', 'cv2', 'huggingface_hub') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_lines_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\nbroken\n{"a": 2}\n')
    lines = documents.each_json_line(path)
    assert next(lines) == {"a": 1}
    with pytest.raises(DataError, match=r"x\.jsonl:2"):
        next(lines)


def test_a_document_of_very_many_keys_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """60,000 unknown keys took 30 s; PyYAML composes no further than to the first value beyond the bound."""
    composed = 0
    compose = documents._Loader.compose_node

    def counted(self: documents._Loader, *arguments: Any) -> Any:
        nonlocal composed
        composed += 1
        return compose(self, *arguments)

    monkeypatch.setattr(documents._Loader, "compose_node", counted)
    text = "".join(f"key{number}: 1\n" for number in range(60_000))
    with pytest.raises(UsageError, match=r"r\.yaml:2500: more than 5,000 keys and values"):
        documents.parse_yaml(text, where="r.yaml")
    assert composed == documents.MAX_VALUES + 1


@pytest.mark.parametrize(
    "data", [b'{"a": 1e999}', b'{"a": -1e999}', b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000]
)
def test_json_that_is_no_finite_value_of_ours_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.json: not valid JSON"):
        documents.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("read", [documents.read_json, documents.read_json_lines, documents.read_text])
def test_what_is_no_regular_file_is_never_opened(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for a writer
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "zero"):
        with pytest.raises(DataError, match="not a file"):
            read(tmp_path / name)


def test_a_file_larger_than_its_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a.json").open("wb") as stream:
        stream.truncate(10_000_000_000)  # a hole
    with pytest.raises(DataError, match=r"10000\.0 MB is more than the 100 MB allowed"):
        documents.read_json(tmp_path / "a.json")
    monkeypatch.setattr(documents, "MAX_JSON_BYTES", 1000)
    with pytest.raises(DataError, match=r"a\.json:1: a line of more than"):
        documents.read_json_lines(tmp_path / "a.json")


def test_a_document_of_another_form_is_named_with_what_was_stumbled_over(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"a\.json: is not as .* \(KeyError: 'miou'\)"),
        documents.understood(tmp_path / "a.json"),
    ):
        {}["miou"]
    with pytest.raises(DataError, match="StopIteration"), documents.understood(tmp_path / "a.json"):
        next(iter([]))
