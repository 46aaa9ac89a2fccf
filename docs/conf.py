"""The documentation as a site: `make docs`. The same pages read well on a code host."""

import re
import shutil
import tomllib
from os.path import relpath
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]

project = html_title = PROJECT["name"]
author = copyright = PROJECT["authors"][0]["name"]
version = release = PROJECT["version"]

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4  # with a code host's slugs: one link to a heading works on both
highlight_language = "text"
smartquotes = False

html_theme = "furo"
html_copy_source = False
html_use_index = False

#: Pages whose text is a file outside docs/. On a code host each of them only links to that file.
PAGES = {
    "benchmarks": ROOT / "benchmarks" / "README.md",
    "changelog": ROOT / "CHANGELOG.md",
    "code-of-conduct": ROOT / "CODE_OF_CONDUCT.md",
    "contributing": ROOT / "CONTRIBUTING.md",
    "security": ROOT / "SECURITY.md",
}
LINK = re.compile(r"\]\((?P<path>[\w./-]+)(?P<anchor>#[\w-]+)?\)")


def setup(app: Sphinx) -> None:
    app.add_lexer("mermaid", TextLexer)  # a code host draws it
    app.connect("source-read", read_page)
    app.connect("build-finished", copy_images)


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    file = PAGES.get(docname, DOCS / f"{docname}.md")
    app.env.note_dependency(str(file))
    text = file.read_text() if docname in PAGES else source[0]
    source[0] = LINK.sub(lambda link: f"]({target(file.parent, link)})", text)


def copy_images(app: Sphinx, exception: Exception | None) -> None:
    """Pictures stand in HTML, for a dark one and a light one: Sphinx does not see them there."""
    if exception is None:
        shutil.copytree(DOCS / "images", app.outdir / "images", dirs_exist_ok=True)


def target(directory: Path, link: re.Match[str]) -> str:
    """Where a link in a file of this directory leads on the site."""
    file = (directory / link["path"]).resolve()
    anchor = link["anchor"] or ""
    for docname, page in PAGES.items():
        if file == page:
            return f"{docname}.md{anchor}"
    if file.is_relative_to(DOCS) or not file.exists():
        return f"{relpath(file, DOCS)}{anchor}"
    return f"{REPOSITORY}/blob/main/{relpath(file, ROOT)}{anchor}"
