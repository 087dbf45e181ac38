"""Parse the server's listings of PubMed files, and NLM's MD5 files.

The layout follows https://ftp.ncbi.nlm.nih.gov/pubmed/ and its READMEs; the listings are Apache directory pages. Only
names of NLM's form are accepted; all other names are reported and skipped.
"""

import logging
import re
from dataclasses import dataclass
from datetime import date
from html.parser import HTMLParser
from typing import Literal, get_args

from bert_pipeline.web.connections import DEFAULT_PATIENCE, DownloadError, Patience
from bert_pipeline.web.downloads import read

log = logging.getLogger(__name__)

Folder = Literal["baseline", "updatefiles"]
FOLDERS: tuple[Folder, ...] = get_args(Folder)
NAME = re.compile(r"pubmed([0-9]{2})n([0-9]{4,5})\.xml\.gz")
"""Groups: the last two digits of the year, and the number of the file."""
DATE_AND_SIZE = re.compile(r"\b([0-9]{4}-[0-9]{2}-[0-9]{2}) [0-9]{2}:[0-9]{2}\s+([0-9.]{1,12})([KMGT]?)\b")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
MAX_NAMES_REPORTED = 100


@dataclass(frozen=True)
class Listed:
    folder: Folder
    name: str
    released: str
    num_bytes: int
    """Approximate, because NLM's listing rounds sizes; 0 if the listing gives none."""

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"

    @property
    def year(self) -> str:
        return year_of(self.name)

    @property
    def number(self) -> int:
        return int(NAME.fullmatch(self.name)[2])  # type: ignore[index]  # only names of this form are listed


def year_of(name: str) -> str:
    """The last two digits of the year in the name of a PubMed file, "" for any other name."""
    match = NAME.fullmatch(name)
    return match[1] if match else ""


def list_files(base_url: str, patience: Patience = DEFAULT_PATIENCE) -> tuple[list[Listed], list[str]]:
    """Return the listed files in order, and the skipped names in printable form (the first MAX_NAMES_REPORTED)."""
    listed, skipped = [], []
    for folder in FOLDERS:
        files: dict[str, Listed] = {}
        for name, date_and_size in read(f"{base_url}{folder}/", _parse_listing, patience):
            if NAME.fullmatch(name):
                files[name] = Listed(folder, name, *_date_and_size(date_and_size))
            elif not NAME.fullmatch(name.removesuffix(".md5")) and not name.startswith("?"):  # sorts the listing
                skipped.append(f"{folder}: {name[:80]!a}")
        if not files and folder == "baseline":
            raise DownloadError(f"{base_url}{folder}/ lists no PubMed file; remedy: use another --base-url")
        listed += [files[name] for name in sorted(files)]
    if skipped:
        log.info("skipping %d other names in the listing: %s", len(skipped), "; ".join(skipped[:5]))
    return listed, skipped[:MAX_NAMES_REPORTED]


class _Listing(HTMLParser):
    """The links of an Apache directory page, each with the text up to the next link."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, list[str]]] = []
        self.is_complete = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (target := dict(attrs).get("href")):
            self.links.append((target, []))

    def handle_data(self, data: str) -> None:
        if self.links:
            self.links[-1][1].append(data)

    def handle_endtag(self, tag: str) -> None:
        self.is_complete |= tag == "html"


def _parse_listing(page: bytes) -> list[tuple[str, str]]:
    parser = _Listing()
    parser.feed(page.decode("utf-8", "backslashreplace"))
    if not parser.is_complete:
        raise ValueError(f"the listing ends before </html>, after {len(page):,} bytes")
    return [(target, "".join(texts)) for target, texts in parser.links]


def _date_and_size(text: str) -> tuple[str, int]:
    if not (match := DATE_AND_SIZE.search(text)):
        return "", 0
    try:
        return date.fromisoformat(match[1]).isoformat(), int(float(match[2]) * UNITS[match[3]])
    except ValueError:
        return "", 0


def parse_md5(content: bytes, name: str) -> str:
    """Return the MD5 from `MD5(pubmed26n0001.xml.gz)= <digits>` (NLM) or `<digits>  pubmed26n0001.xml.gz` (md5sum).

    Raises ValueError if the content has neither form or names another file.
    """
    named = re.escape(name)
    form = rf"\s*(?:MD5 ?\({named}\) ?= ?([0-9a-fA-F]{{32}})|([0-9a-fA-F]{{32}}) [ *]{named})\s*"
    if not (match := re.fullmatch(form, content.decode("utf-8", "backslashreplace"))):
        raise ValueError(f"no MD5 of {name} in {content[:80]!r}")
    return (match[1] or match[2]).lower()
