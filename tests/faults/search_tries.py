"""Block S: what is tried, how it is laid out and run, and every way in which it did not end as promised."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from memorysam_cli.errors import EXIT_CODES
from tests.faults.bad_inputs import CACHES, tree
from tests.faults.jobs_search import LEFT_OUT
from tests.faults.search_lines import HERE, LINES, Line, Spot, spots
from tests.faults.search_worlds import NAMELESS_WORLDS, THINGS, WORLDS
from tests.forks import Ended, Forks

OUTPUT_MODES = ((), ("-q",), ("-v",), ("--json",), ("--json", "-q"))
"""Options that every command has."""
PLACES = ("here", "home", "tmp")
ERROR = re.compile(r"memorysam: error \[(\d+)\]: .+")
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
INPUT_REFUSED = frozenset({2, 3, 5, 6, 10})
"""Exit codes that fit an input that is none; 10 is the one of ``weights verify``."""
OUTPUT_REFUSED = frozenset({0, 2, 3, 6})
FEW_LINES = 6
NOT_TRIED = ["left out: root cannot be kept from the devices here"]


@dataclass(frozen=True)
class Try:
    """A command line, the worlds that it runs in, and what one of its paths names.

    Attributes:
        line: index into :data:`LINES`.
        worlds: of :data:`WORLDS`.
        spot: index into the line's spots; -1 for none.
        thing: of :data:`THINGS`, in that spot.
        output_mode: index into :data:`OUTPUT_MODES`.
        is_absolute: how the other paths are typed.
        is_fresh: in an interpreter of its own.
    """

    line: int
    worlds: tuple[str, ...] = ("calm",)
    spot: int = -1
    thing: str = ""
    output_mode: int = 1
    is_absolute: bool = False
    is_fresh: bool = False

    @property
    def typed(self) -> Line:
        """The line."""
        return LINES[self.line]

    @property
    def where(self) -> Spot | None:
        """The spot."""
        return spots(self.typed)[self.spot] if self.spot >= 0 else None


def everything() -> Iterator[Try]:
    """Every line in every world, and every thing in every spot, each once."""
    for number, line in enumerate(LINES):
        for world, each in WORLDS.items():
            yield Try(number, (world,), is_absolute=not each.stays, is_fresh=each.is_start)
        for spot in range(len(spots(line))):
            for thing in THINGS:
                yield Try(number, spot=spot, thing=thing)


def combination(rng: random.Random) -> Try:
    """Two worlds and perhaps a thing at once."""
    number = rng.randrange(len(LINES))
    worlds = rng.sample(sorted(WORLDS), 2)
    spot = rng.choice([-1, *range(len(spots(LINES[number])))])
    thing = rng.choice(sorted(THINGS)) if spot >= 0 else ""
    return Try(
        number, tuple(worlds), spot, thing, output_mode=rng.randrange(len(OUTPUT_MODES)),
        is_absolute=rng.random() < 0.5 or any(not WORLDS[name].stays for name in worlds),
        is_fresh=any(WORLDS[name].is_start for name in worlds),
    )  # fmt: skip


def lay_out(one: Try, place: Path, template: Path) -> list[str]:
    """Copy what a line takes into a place of its own, put the hostile thing there, and return the words to type."""
    for name in PLACES:
        (place / name).mkdir(parents=True)
    here = place / "here"
    for name in one.typed.takes:
        source = template / name
        if source.is_dir():
            shutil.copytree(source, here / name, symlinks=True)
        else:
            shutil.copy2(source, here / name)
    words, spot = one.typed.words, one.where
    if spot is not None:
        good = words[spot.at] if spot.at < len(words) else ""
        is_file = good.startswith(HERE) and (here / good.removeprefix(HERE)).exists()
        path = THINGS[one.thing].make(here, here / good.removeprefix(HERE) if is_file else None)
        is_odd = path.startswith(("/", "-")) or not path
        words = spot.put(words, path if is_odd or spot.prefix else f"{HERE}{path}")
    base = f"{here}/" if one.is_absolute else ""
    return [f"{base}{word.removeprefix(HERE)}" if word.startswith(HERE) else word for word in words] + [
        *OUTPUT_MODES[one.output_mode]
    ]


def attempt(one: Try, place: Path, template: Path, forks: Forks, *, is_naive: bool = False) -> list[str]:
    """Run a try: what is wrong with how it ended, and how it did; nothing if all is well."""
    words = lay_out(one, place, template)
    loses_rights = one.spot >= 0 and THINGS[one.thing].needs_rights_lost
    before = tree(place)
    try:
        ended = forks.run("try", str(place), ["naive"] * is_naive + words, one.worlds, one.is_fresh, loses_rights)
    except TimeoutError as error:
        return ["it hangs", str(error)[-300:], repr(one)]
    if ended.code == LEFT_OUT:
        return NOT_TRIED
    out = (place / "stdout").read_text(errors="replace") if (place / "stdout").exists() else ""
    found = [*wrong_end(one, ended, out), *wrong_files(one, before, tree(place))]
    return [
        *found,
        f"{' '.join(words)!r} ended with {ended.code}: {ended.said[-1500:]!r} {out[-300:]!r}",
        repr(one),
    ] * bool(found)


def fitting(one: Try) -> frozenset[int]:
    """The exit codes that fit a try."""
    worlds, spot, usual = [WORLDS[name] for name in one.worlds], one.where, frozenset({one.typed.code})
    odd = frozenset[int]().union(*(world.codes for world in worlds))
    loud = frozenset[int]().union(*(world.loud for world in worlds))
    # A command that fails anyhow may not get as far as to write on stdout; nor where it leads elsewhere after all.
    calm = loud | odd if loud and not one.typed.code and len(worlds) == 1 else usual | loud | odd
    if spot is None:
        return calm
    if spot.is_output:
        return calm | OUTPUT_REFUSED
    thing = THINGS[one.thing]
    if thing.is_good or (thing.needs_rights_lost and not set(one.worlds).isdisjoint(NAMELESS_WORLDS)):
        return calm | INPUT_REFUSED
    return loud | odd | INPUT_REFUSED


def _is_json(one: Try) -> bool:
    return "--json" in OUTPUT_MODES[one.output_mode]


def wrong_end(one: Try, ended: Ended, out: str) -> list[str]:
    """What is wrong with the exit code, with stderr and with the answer of ``--json``."""
    fit, code, said = fitting(one), ended.code, ended.said
    found = [] if code in fit and code in EXIT_CODES else [f"exit code {code}, not of {sorted(fit)}"]
    if "Traceback" in said and "debug" not in one.worlds:
        found.append("a traceback")
    hidden = {name for world in one.worlds for name in WORLDS[world].hides}
    if "color" not in one.worlds and UNPRINTABLE.search(said + out):
        found.append("control characters")
    if "err" not in hidden:
        found += _wrong_words(one, said, code)
    if _is_json(one) and "out" not in hidden and code != 141:
        found += _wrong_answer(out, code)
    return found


def _wrong_words(one: Try, said: str, code: int) -> list[str]:
    if "color" in one.worlds:
        said = re.sub(r"\x1b\[[\d;]*m", "", said)
    lines = said.splitlines()
    errors = [match for match in map(ERROR.fullmatch, lines) if match]
    found = []
    is_quiet = code == 141  # nobody reads
    if code and not is_quiet and (len(errors) != 1 or not ERROR.fullmatch(lines[-1]) or errors[0][1] != str(code)):
        found.append(f"{len(errors)} lines of error, or not the last, or of another code")
    if not code and errors:
        found.append("an error, but exit code 0")
    if "-q" in OUTPUT_MODES[one.output_mode]:
        strange = [line for line in lines if not line.startswith("memorysam: ")]
        found += [f"not ours: {line!r}" for line in strange[:1]]
        found += ["a flood of lines"] * (len(lines) > FEW_LINES)
    return found


def _wrong_answer(out: str, code: int) -> list[str]:
    try:
        answer = json.loads(out)
    except ValueError:
        return [f"no JSON object: {out[:80]!r}"]
    if out.count("\n") != 1 or not isinstance(answer, dict) or answer.get("schema_version") != 1:
        return ["not one object of schema_version 1"]
    return []


def wrong_files(one: Try, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What was lost or changed, and what was left behind."""
    outputs = ["stdout", *(f"here/{name}" for name in one.typed.outputs)]
    spot = one.where
    # Below an odd name anything may be new.
    is_anywhere = spot is not None and (spot.is_output or THINGS[one.thing].is_good)
    lost = [name for name in before if before[name] != after.get(name) and not _is_of_the_world(one, name)]
    if is_anywhere:  # a link is replaced, what it leads to is not; a report replaces the one before
        lost = [name for name in lost if not before[name].startswith("link") and one.typed.command != "report"]
    new = [name for name in after if name not in before and not _is_below(name, outputs) and not _is_cache(name)]
    new = [name for name in new if not (is_anywhere and name.startswith("here/"))]
    temporary = [name for name in after if ".tmp-" in name or (name.startswith("tmp/") and not _is_cache(name))]
    return (
        [f"changed: {name} ({before[name]} -> {after.get(name)})" for name in lost[:3]]
        + [f"new: {name}" for name in new[:3]]
        + [f"a temporary stays: {name}" for name in temporary[:3]]
    )


def _is_of_the_world(one: Try, name: str) -> bool:
    """What a world itself changes, and what the resumed run writes."""
    return (name == "tmp" and "tmp read-only" in one.worlds) or (
        one.typed.words[:2] == ("train", "--resume") and name.startswith("here/") and not name.startswith("here/data/")
    )


def _is_below(name: str, folders: Iterable[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def _is_cache(name: str) -> bool:
    """What other people's libraries leave at home, and its folders."""
    caches = (*CACHES, ".config", "hf", ".triton", ".nv")
    return any(name.startswith(f"{place}/{each}") for place in ("home", "tmp") for each in caches)
