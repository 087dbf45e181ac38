"""The reader for each format: it turns a stream of bytes into numbered records and faults."""

from collections.abc import Callable
from dataclasses import replace

from bert_pipeline.data.sources.archives import members
from bert_pipeline.data.sources.article_sets import read_articles
from bert_pipeline.data.sources.delimited_readers import read_csv, read_tsv
from bert_pipeline.data.sources.jats import ARTICLE_FIELDS, MAX_BYTES, read_article
from bert_pipeline.data.sources.records import Fault, PassedOver, excerpt
from bert_pipeline.data.sources.table_readers import read_arrow, read_parquet
from bert_pipeline.data.sources.text_readers import read_json, read_jsonl, read_txt
from bert_pipeline.data.sources.wanted import Records, Stream, Wanted, require

PLAIN_TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
JATS_SUFFIXES = (".nxml", ".xml")


def _read_xml(stream: Stream, wanted: Wanted) -> Records:
    require(wanted.text_fields, ARTICLE_FIELDS, "field")
    yield from enumerate(read_articles(stream, wanted.section_titles), 1)


def _read_archive(stream: Stream, wanted: Wanted) -> Records:
    """Each .nxml or .xml member is one article."""
    require(wanted.text_fields, ARTICLE_FIELDS, "field")
    for number, name, data in members(stream, JATS_SUFFIXES, MAX_BYTES):
        if isinstance(data, PassedOver):
            yield number, replace(data, file=f"{wanted.file}/{data.file}")
            continue
        article = data if isinstance(data, Fault) else read_article(data, wanted.section_titles)
        if isinstance(article, Fault):
            article = replace(article, excerpt=excerpt(f"{name}: {article.excerpt}"))
        yield number, article


READERS: dict[str, Callable[[Stream, Wanted], Records]] = {
    **dict.fromkeys(PLAIN_TEXT_SUFFIXES, read_txt),
    **dict.fromkeys(JSON_LINES_SUFFIXES, read_jsonl),
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    **dict.fromkeys(JATS_SUFFIXES, _read_xml),
    ".tar": _read_archive,
}
UNIT = {
    **dict.fromkeys((*PLAIN_TEXT_SUFFIXES, *JSON_LINES_SUFFIXES, ".csv", ".tsv"), "line"),
    ".json": "record",
    **dict.fromkeys((".parquet", ".arrow"), "row"),
    **dict.fromkeys(JATS_SUFFIXES, "article"),
    ".tar": "member",
}
"""The unit that a record's number counts."""
