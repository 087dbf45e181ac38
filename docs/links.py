"""Every link of a built site: internal ones must lead to a file and an anchor in it, external ones have a link's form.

python docs/links.py site
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

EXTERNAL = re.compile(r"https?://[\w.-]+(:\d+)?([/?#]\S*)?|mailto:\S+@\S+")
WHERE = {"a": "href", "link": "href", "img": "src", "script": "src", "iframe": "src"}


class Page(HTMLParser):
    """The links of a page, and the places in it that links can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {place for place in (values.get("id"), values.get("name")) if place}
        if (link := values.get(WHERE.get(tag, ""))) is not None:
            self.links.append(link)


def faults(site: Path) -> Iterator[str]:
    """Each broken link, with the page that it stands on. Raises FileNotFoundError without a site."""
    if not (site / "index.html").is_file():
        raise FileNotFoundError(f"{site} has no index.html; remedy: make docs")
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        if path.name == "404.html":  # which a server shows at any address, so it links from the root
            continue
        for link in page.links:
            if reason := _fault(path, link, pages):
                yield f"{path.relative_to(site.resolve())}: {link}: {reason}"


def _fault(path: Path, link: str, pages: dict[Path, Page]) -> str:
    try:
        parts = urlsplit(link)
    except ValueError as error:
        return str(error)
    if parts.scheme or parts.netloc:
        return "" if EXTERNAL.fullmatch(link) else "has not the form of an address"
    if link.startswith("/"):
        return "leads out of the site, which may lie in any folder"
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
    print("\n".join(found) if found else f"{site}/index.html: all links lead somewhere")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
