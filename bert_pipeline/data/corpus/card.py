"""The data card of a corpus: what was read, what was kept, why records were dropped, and samples of the text.

    facts, samples -> sections -> data_card.html    one file for a browser, pictures embedded
                               -> DATA_CARD.md      a dataset card for the Hugging Face Hub

After "Datasheets for Datasets" (Gebru et al. 2021, arXiv 1803.09010). The card omits what the facts do not contain. The
text of a corpus is untrusted: the card shows it escaped, and the page runs no script and loads nothing.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bert_pipeline.core.tables import byte_size
from bert_pipeline.data.corpus import card_pages
from bert_pipeline.data.corpus.card_pages import CardSection, Samples
from bert_pipeline.report import pictures
from bert_pipeline.store.artifact import Facts

FILES = PAGE, TEXT = "data_card.html", "DATA_CARD.md"

SAMPLE_CHARACTERS = 1_500


def write_data_card(out: Path, facts: Facts, samples: Samples) -> None:
    """Write `data_card.html` and `DATA_CARD.md` into the directory `out` of a raw_corpus with these facts."""
    shown, documents = list(sections(facts)), [(name, _cut(sentences)) for name, sentences in samples]
    page = card_pages.html(_title(facts), _glance(facts), shown, documents)
    (out / PAGE).write_text(page, encoding="utf-8")
    text = card_pages.markdown(_title(facts), shown, documents)
    (out / TEXT).write_text(_hub_head(facts) + text, encoding="utf-8")


def card_in_markdown(facts: Facts) -> str:
    """The card as Markdown with embedded pictures, without samples."""
    return card_pages.markdown(_title(facts), list(sections(facts)), embed=True)


def heaps_exponent(growth: Mapping[str, list[int]]) -> float | None:
    """The exponent b of distinct = k * words ** b, by least squares on logarithms; None for fewer than three counts.

    Heaps' law: Manning, Raghavan & Schütze 2008, section 5.1.1, where b is about 0.5.
    """
    if len(growth["words"]) < 3:
        return None
    return float(np.polyfit(np.log(growth["words"]), np.log(growth["distinct"]), 1)[0])


def sections(facts: Facts) -> Iterator[CardSection]:
    """Yield the sections of the card in order, without the samples."""
    yield _size(facts)
    yield _records(facts)
    if others := facts.get("passed_over"):
        kinds = [(reason, each["files"], byte_size(each["bytes"])) for reason, each in others.items()]
        text = "These files of the folder and members of archives were not read; passed_over.jsonl names each."
        yield CardSection("Other files", text, ("reason", "files", "size"), kinds)
    if rules := facts["cleaned_by_rule"]:
        yield CardSection(
            "Cleaning", "How many documents each rule changed.", ("rule", "documents"), _descending(rules)
        )
    yield _length(facts)
    if facts["documents_by_year"]:
        yield _years(facts)
    if journals := facts["documents_by_journal"]:
        documents = _documents(facts)
        others = documents - sum(journals.values())
        rows = [(name, count, count / documents) for name, count in _descending(journals)]
        text = f"The {len(journals)} largest. {others:,} documents are of other journals, or name none."
        yield CardSection("Journals", text, ("journal", "documents", "share"), rows)
    if facts["vocabulary_growth"]["words"]:
        yield _vocabulary(facts["vocabulary_growth"])


def _size(facts: Facts) -> CardSection:
    rows: list[tuple[str | int, ...]] = []
    for unit in ("documents", "sentences", "words"):
        train, heldout = facts[f"train_{unit}"], facts[f"heldout_{unit}"]
        rows.append((unit, train, heldout, train + heldout))
    text = (
        f"Made from {facts['files']:,} files, {byte_size(facts['source_bytes'])}"
        if facts["files"]
        else "Generated text"
    )
    text += f"; the newest was released on {facts['cut_off']}" if facts["cut_off"] else ""
    fingerprint = f" (fingerprint {facts['sources_fingerprint']})" if facts["sources_fingerprint"] else ""
    return CardSection("Size", f"{text}{fingerprint}.", ("", "to train on", "held out", "together"), rows)


def _records(facts: Facts) -> CardSection:
    """What became of each record. The rows sum up to the last one; if they do not, the card says so."""
    kept, dropped, rejected = _documents(facts), facts["dropped_documents"], facts["rejected_documents"]
    records = facts["records"]
    counts = [("kept", kept)]
    counts += [(f"dropped: {reason}", count) for reason, count in _descending(facts["dropped_by_reason"])]
    counts += [(f"rejected: {reason}", count) for reason, count in _descending(facts["rejected_by_reason"])]
    counts.append(("read", records))
    text = f"{records:,} records = {kept:,} documents + {dropped:,} dropped + {rejected:,} rejected (broken)."
    if lost := records - kept - dropped - rejected:
        text += f" {lost:,} records are NOT accounted for."
    if dropped:
        text += (
            " Each dropped record stands in dropped.parquet with its reason: bert-pipeline dropped DIRECTORY --id ID."
            " Shards keep rows that were dropped after they were written; live.parquet names them, and no reader gives"
            " them."
        )
    rows = [(where, count, count / max(records, 1)) for where, count in counts]
    return CardSection("Records", text, ("", "records", "share"), rows)


def _length(facts: Facts) -> CardSection:
    documents, sentences, words = (
        facts[f"train_{unit}"] + facts[f"heldout_{unit}"] for unit in ("documents", "sentences", "words")
    )
    text = (
        f"On average {words / documents:,.0f} words a document, in {sentences / documents:,.1f} sentences of "
        f"{words / max(sentences, 1):,.1f} words."
    )
    drawn = {
        f"{unit} per document": pictures.histogram(found["edges"], found["counts"], xlabel=unit, ylabel="documents")
        for unit in ("words", "sentences")
        if (found := facts[f"{unit}_per_document_histogram"])
    }
    return CardSection("Length", text, pictures=drawn)


def _years(facts: Facts) -> CardSection:
    counts = {int(year): count for year, count in facts["documents_by_year"].items()}
    first, last = min(counts), max(counts)
    years = range(first, last + 1)
    picture = pictures.histogram(
        [year - 0.5 for year in (*years, last + 1)],
        [counts.get(year, 0) for year in years],
        xlabel="year of publication",
        ylabel="documents",
    )
    undated = _documents(facts) - sum(counts.values())
    text = f"From {first} to {last}; {undated:,} documents bear no date."
    return CardSection("Dates", text, pictures={"documents by year of publication": picture})


def _vocabulary(growth: Mapping[str, list[int]]) -> CardSection:
    words, distinct = growth["words"], growth["distinct"]
    exponent = heaps_exponent(growth)
    text = f"{distinct[-1]:,} distinct words among the first {words[-1]:,}, lower-cased."
    if exponent is not None:
        text += (
            f" Their number grows as words to the power of {exponent:.2f} (Heaps' law; about 0.5 is usual, "
            "Manning et al. 2008, section 5.1.1)."
        )
    picture = pictures.growth(words, distinct, exponent)
    return CardSection("Vocabulary growth", text, pictures={"distinct words against words": picture})


def _title(facts: Facts) -> str:
    return f"A corpus of {_documents(facts):,} documents"


def _glance(facts: Facts) -> dict[str, str]:
    """The headline figures of the page, by label."""
    documents = _documents(facts)
    shown = {
        "documents": _large(documents),
        "words": _large(facts["train_words"] + facts["heldout_words"]),
        "of the records kept": f"{documents / max(facts['records'], 1):.1%}",
        "held out": f"{facts['heldout_documents'] / max(documents, 1):.1%}",
    }
    shown |= {f"in {facts['files']:,} files": byte_size(facts["source_bytes"])} if facts["files"] else {}
    return shown | ({"cut-off": facts["cut_off"]} if facts["cut_off"] else {})


def _hub_head(facts: Facts) -> str:
    """The YAML header of a Hub dataset card (hub-docs, datasetcard.md)."""
    power = max(3, math.floor(math.log10(max(_documents(facts), 1))) + 1)
    sizes = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B"]
    return f"""\
---
pretty_name: {_title(facts)}
task_categories: [fill-mask]
size_categories: [{sizes[min(power - 3, len(sizes) - 1)]}]
tags: [bert, pretraining]
---

"""


def _documents(facts: Facts) -> int:
    return facts["train_documents"] + facts["heldout_documents"]


def _descending(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _cut(sentences: list[str]) -> list[str]:
    """The first SAMPLE_CHARACTERS of a document; an ellipsis marks a cut."""
    shown: list[str] = []
    left = SAMPLE_CHARACTERS
    for sentence in sentences:
        if len(sentence) > left:
            return [*shown, f"{sentence[:left]} …"]
        shown.append(sentence)
        left -= len(sentence)
    return shown


def _large(count: int) -> str:
    for unit, size in (("billion", 10**9), ("million", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"
