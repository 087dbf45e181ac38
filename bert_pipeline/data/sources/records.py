"""What every source gives: documents, records that are broken, and the news that a document is gone."""

import re
from dataclasses import dataclass

EXCERPT_LENGTH = 120


class SourceError(ValueError):
    """A source that cannot be read on; the message names the file, the line where there is one, and the remedy."""


@dataclass(frozen=True)
class Document:
    document_id: str
    texts: tuple[str, ...]
    """Each is split into sentences by itself: the recipe's text fields; title and sections of an article."""
    source: str
    """Name of the file; empty where the text is generated."""
    number: int = 0
    """Of the line, row or record in the file, from 1."""
    version: int = 1
    date: str = ""
    """Of publication: 2018-05-17, 2018-05 or 2018; empty where it is not known."""
    journal: str = ""
    retracted: bool = False
    retracts: tuple[str, ...] = ()
    """Ids of the documents that this one says are retracted."""
    deleted: bool = False
    """No document, but the news that this version of it is gone; it has no texts."""

    @property
    def place(self) -> str:
        """What it is called where it has no id of its own."""
        return f"{self.source}:{self.number}" if self.source else self.document_id


@dataclass(frozen=True)
class Rejection:
    """A record set aside."""

    file: str
    record: str  # "line 7" or "row 7"
    reason: str
    excerpt: str

    def __str__(self) -> str:
        return f"{self.file}, {self.record}: {self.reason}: {self.excerpt!r}"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a record."""

    reason: str
    excerpt: str


def excerpt(text: str, position: int = 0) -> str:
    """The text around a position, fit to be written as UTF-8: an undecodable byte shows as \\xff."""
    start = max(0, position - EXCERPT_LENGTH // 3)
    shown = text[start : start + EXCERPT_LENGTH]
    shown = re.sub(r"[\udc80-\udcff]", lambda escaped: f"\\x{ord(escaped[0]) - 0xDC00:02x}", shown)
    return shown.encode("utf-8", "backslashreplace").decode()
