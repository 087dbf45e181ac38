"""The reader for each format: it turns a stream of bytes into numbered records and faults."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from bert_pipeline.data.sources.archives import members
from bert_pipeline.data.sources.jats import ARTICLE_FIELDS, MAX_BYTES, NOT_WELL_FORMED, read_article
from bert_pipeline.data.sources.records import Fault, excerpt
from bert_pipeline.data.sources.table_readers import read_arrow, read_parquet
from bert_pipeline.data.sources.text_readers import read_csv, read_json, read_jsonl, read_txt
from bert_pipeline.data.sources.wanted import Records, Stream, Wanted, require

JATS_SUFFIXES = (".nxml", ".xml")


def _read_article(stream: Stream, wanted: Wanted) -> Records:
    require(wanted.text_fields, ARTICLE_FIELDS, "field")
    data = stream.read(MAX_BYTES + 1)
    if not data.strip():
        return
    article = read_article(data, wanted.section_titles)
    is_cut = b"<article" in data and b"</article>" not in data and len(data) <= MAX_BYTES
    if isinstance(article, Fault) and article.reason == NOT_WELL_FORMED and is_cut:
        raise EOFError(article.excerpt)
    yield 1, article


def _read_archive(stream: Stream, wanted: Wanted) -> Records:
    """Each member is one article."""
    require(wanted.text_fields, ARTICLE_FIELDS, "field")
    for number, name, data in members(stream, JATS_SUFFIXES, MAX_BYTES):
        article = data if isinstance(data, Fault) else read_article(data, wanted.section_titles)
        if isinstance(article, Fault):
            article = replace(article, excerpt=excerpt(f"{name}: {article.excerpt}"))
        yield number, article


READERS: dict[str, Callable[[Stream, Wanted], Records]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiter="\t"),
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    **dict.fromkeys(JATS_SUFFIXES, _read_article),
    ".tar": _read_archive,
}
UNIT = {
    **dict.fromkeys((".txt", ".jsonl", ".csv", ".tsv"), "line"),
    ".json": "record",
    **dict.fromkeys((".parquet", ".arrow"), "row"),
    **dict.fromkeys(JATS_SUFFIXES, "article"),
    ".tar": "member",
}
"""The unit that a record's number counts."""
