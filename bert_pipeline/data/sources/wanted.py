"""The interface of the readers: the fields to read from each record, and the records returned."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bert_pipeline.data.sources.jats import Article
from bert_pipeline.data.sources.records import Fault, PassedOver, SourceError, excerpt

Stream = Any  # a binary file; those of io, gzip, lzma and pyarrow have no common type
Records = Iterator[tuple[int, Mapping[str, Any] | Article | Fault | PassedOver]]
"""Number of the line, row, record or member, and its fields."""


@dataclass(frozen=True)
class Wanted:
    """The fields to read from each record."""

    text_fields: tuple[str, ...]
    id_field: str = ""
    section_titles: bool = False
    """Whether section titles of articles become texts."""
    csv_delimiter: str = ""
    """Delimiter of .csv files; empty: recognize it from the header."""
    file: str = ""
    """Name of the file, for log lines and members of archives."""

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self.text_fields, *filter(None, [self.id_field]))


def require(wanted: tuple[str, ...], columns: Iterable[str], what: str = "column") -> None:
    """Raise SourceError unless each wanted name occurs exactly once in `columns`."""
    for name in wanted:
        if list(columns).count(name) != 1:
            raise SourceError(
                f"{'no' if name not in columns else 'more than one'} {what} {name}; "
                f"the {what}s are {', '.join(map(excerpt, columns))}; "
                "remedy: name one of them in corpus.text_fields or corpus.id_field"
            )
