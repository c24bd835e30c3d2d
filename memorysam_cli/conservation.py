"""Conservation: what goes in comes out, or is listed; the sums that every command checks."""

from __future__ import annotations

from collections.abc import Mapping

Report = dict[str, dict[str, int | bool]]
"""What a report has under ``laws``: law → ``{"left": …, "right": …, "holds": true}``."""


class LawBroken(AssertionError):
    """A sum that does not come out: a bug of ours, never the user's mistake (exit code 1)."""


def check(laws: Mapping[str, tuple[int, int]]) -> Report:
    """See that every law holds.

    Args:
        laws: name, such as ``"scenes found = accepted + left out"``, → what its left and right sides come to.

    Returns:
        The laws in their order, as plain JSON values.

    Raises:
        LawBroken: some do not hold; names each with both sums.
    """
    broken = [f"'{name}': {left:,} ≠ {right:,}" for name, (left, right) in laws.items() if left != right]
    if broken:
        raise LawBroken(f"conservation broken: {'; '.join(broken)}; do not trust these results, and report this bug")
    return {name: {"left": int(left), "right": int(right), "holds": True} for name, (left, right) in laws.items()}
