"""``memorysam doctor``: problems of this machine, and how to fix them."""

from __future__ import annotations

from memorysam_cli.commands import options
from memorysam_cli.errors import EnvironmentFault
from memorysam_cli.text import counted

SCHEMA_VERSION = 1
EXAMPLES = [
    ("doctor", "ok, warning or problem, and what to do"),
    ("doctor --json", "for a bug report"),
]


def doctor(json: options.Json = False, verbose: options.Verbose = False, quiet: options.Quiet = False) -> None:
    """Examine this machine: packages, GPU, disks, limits, the Hub.

    Each line is ok, warning or problem, with a fix. Its only network access is one request for the Hub's front page
    (none with HF_HUB_OFFLINE=1). Exit code 6: there is a problem, and commands will fail.
    """
    options.begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.engine.diagnosis import examine
    from memorysam_cli.report import console

    found = list(examine())
    counts = {state: sum(1 for each in found if each.state == state) for state in ("ok", "warning", "problem")}
    if json:
        rows = [vars(each) for each in found]
        console.answer({"schema_version": SCHEMA_VERSION, "checks": rows, "counts": counts})
    console.table(["check", "state", "found"], [[each.name, each.state, each.found] for each in found])
    for each in found:
        if each.remedy:
            console.say(f"{each.state}: {each.name}: {each.remedy}")
    console.say(f"{counts['ok']} ok, {counted(counts['warning'], 'warning')}, {counted(counts['problem'], 'problem')}")
    if counts["problem"]:
        names = ", ".join(each.name for each in found if each.state == "problem")
        raise EnvironmentFault(f"doctor: {counted(counts['problem'], 'problem')}: {names}; see the fixes above")
