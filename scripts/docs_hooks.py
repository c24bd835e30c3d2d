"""What MkDocs needs beside mkdocs.yml: the pages that lie at the top of the repository, where GitHub looks for them."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "benchmarks.md": "benchmarks/README.md",
}
"""Page of the site → file of the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=translated((ROOT / source).read_text("utf-8"), source)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links that lead out of docs/ lead to the site's page of that file."""
    for page, source in PAGES.items():
        markdown = re.sub(rf"\]\(\.\./{re.escape(source)}(#[\w-]+)?\)", rf"]({page}\1)", markdown)
    return markdown


def translated(markdown: str, source: str) -> str:
    """A file of the repository as a page of the site: its links start in docs/."""
    up = "../" * source.count("/")
    for page, other in PAGES.items():
        markdown = re.sub(rf"\]\({re.escape(up + other)}(#[\w-]+)?\)", rf"]({page}\1)", markdown)
    return re.sub(rf"\]\({re.escape(up)}docs/", "](", markdown)
