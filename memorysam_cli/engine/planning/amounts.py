"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from memorysam_cli.errors import UsageError

_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


def read_bytes(text: str, *, option: str) -> int:
    """The bytes of an amount such as ``24GB``, ``24 GiB`` or ``24000MB``.

    Args:
        text: a number and its unit; GB is 10⁹ bytes, GiB 2³⁰.
        option: whose value it is, for the message.

    Raises:
        UsageError: anything else, or nothing at all.
    """
    found = _AMOUNT.fullmatch(text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or not float(found[1]):
        raise UsageError(f"{option} '{text}': must be an amount of memory above 0 with its unit, such as 24GB or 24GiB")
    return round(float(found[1]) * unit)
