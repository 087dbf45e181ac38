"""The output of every source: documents, deleted documents, rejected records, and what is passed over."""

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

EXCERPT_LENGTH = 120


class SourceError(ValueError):
    """A source cannot be read any further; the message names the file, the line if there is one, and the remedy."""


class Document(NamedTuple):
    """A tuple, because all documents pass between processes."""

    document_id: str
    texts: tuple[str, ...]
    """The recipe's text fields, or title and sections of an article; each is split into sentences separately."""
    source: str
    """Name of the file; empty for generated text."""
    number: int = 0
    """Number of the line, row or record in the file, from 1."""
    version: int = 1
    date: str = ""
    """Date of publication: 2018-05-17, 2018-05 or 2018; empty if unknown."""
    journal: str = ""
    retracted: bool = False
    retracts: tuple[str, ...] = ()
    """Ids of the documents that this document retracts."""
    deleted: bool = False
    """This version of the document was deleted; it has no texts."""

    @property
    def place(self) -> str:
        """Id for a document without its own id."""
        return f"{self.source}:{self.number}" if self.source else self.document_id


@dataclass(frozen=True)
class Rejection:
    """A broken record that was skipped."""

    file: str
    record: str  # "line 7" or "row 7"
    reason: str
    excerpt: str

    def __str__(self) -> str:
        return f"{self.file}, {self.record}: {self.reason}: {self.excerpt!r}"


@dataclass(frozen=True)
class PassedOver:
    """A file in the folder of the corpus, or a member of an archive, that is not read."""

    file: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class Fault:
    """What is wrong with a record."""

    reason: str
    excerpt: str


def escaped(name: object) -> str:
    """A path that can be encoded as UTF-8: in a part that is not UTF-8, each byte beyond ASCII is shown as \\xff."""
    return "/".join(map(_escaped_part, str(name).split("/")))


def _escaped_part(name: str) -> str:
    try:
        return os.fsencode(name).decode()
    except UnicodeDecodeError:
        return os.fsencode(name).decode("ascii", "backslashreplace")


def excerpt(text: str, position: int = 0) -> str:
    """The text around a position, encodable as UTF-8; an undecodable byte is shown as \\xff."""
    start = max(0, position - EXCERPT_LENGTH // 3)
    shown = text[start : start + EXCERPT_LENGTH]
    shown = re.sub(r"[\udc80-\udcff]", lambda escaped: f"\\x{ord(escaped[0]) - 0xDC00:02x}", shown)
    return shown.encode("utf-8", "backslashreplace").decode()
