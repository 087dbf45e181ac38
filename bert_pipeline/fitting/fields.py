"""The text and id fields of records, found by their usual names."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from bert_pipeline.data.sources.files import read_documents
from bert_pipeline.data.sources.folders import find_files
from bert_pipeline.data.sources.formats import suffixes
from bert_pipeline.data.sources.readers import PLAIN_TEXT_SUFFIXES
from bert_pipeline.data.sources.records import Document, SourceError

TEXT_FIELDS = (
    ("title", "abstract", "body"),  # articles (.nxml, .xml) have these
    ("title", "abstract"),
    *(("title", name) for name in ("text", "body", "content")),
    *((name,) for name in ("text", "abstract", "body", "content", "article", "document", "note", "sentence")),
)
"""In order of preference."""
ID_FIELDS = ("id", "pmid", "doc_id", "document_id", "_id")
FILES, RECORDS = 5, 100
"""At most so many files are read, spread over all of them, and so many records of each."""
SHARE = 0.9
"""Share of the records that must have the fields; the others may be broken."""


def choose_fields(path: str) -> tuple[tuple[str, ...], str]:
    """Return corpus.text_fields and corpus.id_field for the text at `path`; an empty id_field if records have none.

    Raises SourceError if the records have none of the usual text fields.
    """
    every = list(find_files(path).items())
    files = dict(every[:: -(-len(every) // FILES)])
    if all(suffixes(name)[0] in PLAIN_TEXT_SUFFIXES for name in files):
        return ("text",), ""
    faults: list[str] = []
    for text_fields in TEXT_FIELDS:
        if without := _ids(files, text_fields, "", faults):
            for name in ID_FIELDS:
                ids = _ids(files, text_fields, name, faults)
                if len(set(ids)) == len(ids) and ids not in ([], without):  # articles have ids of their own
                    return text_fields, name
            return text_fields, ""
    if len(set(faults)) == 1:  # the same for all fields: the file is broken
        raise SourceError(faults[0])
    usual = ", ".join(dict.fromkeys(name for fields in TEXT_FIELDS for name in fields))
    found = faults[-1].partition("; remedy")[0]
    raise SourceError(
        f"{path}: no usual text field ({usual}) in its records: {found}; remedy: rename it, or write a recipe by "
        "hand with your field in corpus.text_fields"
    )


def _ids(files: Mapping[str, Path], text_fields: tuple[str, ...], id_field: str, faults: list[str]) -> list[str]:
    """The ids of the first records, if they can be read with these fields; else none, and the reason in `faults`."""
    ids: list[str] = []
    for name, path in files.items():
        try:
            records = list(islice(read_documents({name: path}, text_fields, id_field), RECORDS))
        except SourceError as error:
            faults.append(str(error))
            return []
        found = [record.document_id for record in records if isinstance(record, Document)]
        if len(found) < SHARE * len(records):
            faults.append(str(next(record for record in records if not isinstance(record, Document))))
            return []
        ids += found
    return ids
