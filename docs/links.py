"""Check the links of a built site: internal ones need an existing file and anchor, external ones a valid form. Nothing
may be loaded from another server.

python docs/links.py site
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

EXTERNAL = re.compile(r"https?://[\w.-]+(:\d+)?([/?#]\S*)?|mailto:\S+@\S+")
LINK_ATTRIBUTES = {"a": "href", "link": "href", "img": "src", "script": "src", "iframe": "src"}


class Page(HTMLParser):
    """The links of a page, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        """The element and the address of each."""
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {anchor for anchor in (values.get("id"), values.get("name")) if anchor}
        if (link := values.get(LINK_ATTRIBUTES.get(tag, ""))) is not None:
            self.links.append((tag, link))


def faults(site: Path) -> Iterator[str]:
    """Yield each broken link with its page and the reason. Raises FileNotFoundError if there is no site."""
    if not (site / "index.html").is_file():
        raise FileNotFoundError(f"{site} has no index.html; remedy: make docs")
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        if path.name == "404.html":  # servers show it at any address, so its links start at the root
            continue
        for tag, link in page.links:
            if reason := _fault(path, tag, link, pages):
                yield f"{path.relative_to(site.resolve())}: {link}: {reason}"


def _fault(path: Path, tag: str, link: str, pages: dict[Path, Page]) -> str:
    try:
        parts = urlsplit(link)
    except ValueError as error:
        return str(error)
    if tag != "a" and parts.netloc:  # readers follow <a>; the browser loads all others with the page
        return "is loaded from another server"
    if parts.scheme or parts.netloc:
        return "" if EXTERNAL.fullmatch(link) else "is not a valid address"
    if link.startswith("/"):
        return "is absolute, but the site may be in any folder"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return "no such file"
    if target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return "no such anchor on that page"
    return ""


def main(site: Path) -> int:
    found = list(faults(site))
    print("\n".join(found) if found else f"{site}/index.html: all links are valid")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
