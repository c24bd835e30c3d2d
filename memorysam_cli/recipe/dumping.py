"""A recipe as YAML that a person would have written."""

from __future__ import annotations

import yaml

from memorysam_cli.errors import UsageError
from memorysam_cli.storage.documents import parse_yaml


class Dumper(yaml.SafeDumper):
    """Lists on one line, and quotes around every text that our reader would take for a number."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        is_plain = parse_yaml(text, where="") == text
    except UsageError:
        is_plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


Dumper.add_representer(str, _represent_text)
Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)
