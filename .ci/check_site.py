"""Every link on the site leads somewhere: `python .ci/check_site.py DIRECTORY`. Other sites are not
asked, so that nobody's outage breaks the build."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page can be linked by, and what it links to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors = {""}
        self.links: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.links |= {values[name] for name in ("href", "src", "action") if name in values}
        self.links |= {part.split()[0] for part in values.get("srcset", "").split(",") if part}


def broken_links(directory: Path) -> list[str]:
    pages = {file: Page(file) for file in sorted(directory.rglob("*.html"))}
    return [
        f"{file.relative_to(directory)}: {link}"
        for file, page in pages.items()
        for link in sorted(page.links)
        if not leads_somewhere(link, file, pages)
    ]


def leads_somewhere(link: str, file: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if target not in pages:
        return target.is_file()
    return unquote(parts.fragment) in pages[target].anchors


def main(directory: Path) -> int:
    if not (directory / "search.html").is_file():
        print(f"There is no site with a search in {directory}")
        return 1
    links = broken_links(directory)
    print(*(f"Broken link: {link}" for link in links), sep="\n", end="\n" if links else "")
    return bool(links)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
