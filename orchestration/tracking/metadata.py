"""Metadata of an artifact in Dagster: facts as plotted numbers, pictures, columns, its path."""

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from bert_pipeline.core.printable import fenced
from bert_pipeline.data.corpus import card
from bert_pipeline.formats.corpus import CORPUS_SCHEMA
from bert_pipeline.formats.tables import read_table
from bert_pipeline.planning import table
from bert_pipeline.report import pictures
from bert_pipeline.report.score_table import scores_markdown
from bert_pipeline.store.artifact import Artifact

ON_THE_CARD = (
    *("documents_by_year", "documents_by_journal", "vocabulary_growth"),
    *("sentences_per_document_histogram", "words_per_document_histogram"),
)
"""Facts of raw_corpus that only the data card shows, as a picture or a table."""

SIGNIFICANT_DIGITS = 6
"""Digits that Dagster shows; record.json has the full values."""

NOT_IN_METRICS = re.compile(r"[^\w\-. /:]")


def flatten(tree: Mapping[str, Any], separator: str = "/") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and of lists of mappings, each with its path. A histogram is a leaf."""
    for name, value in tree.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            value = {str(number): row for number, row in enumerate(value)}
        if isinstance(value, Mapping) and not _is_histogram(value):
            yield from ((f"{name}{separator}{rest}", leaf) for rest, leaf in flatten(value, separator))
        else:
            yield name, value


def numbers(facts: Mapping[str, Any]) -> dict[str, float]:
    """All numbers by path. Characters that MLflow rejects in metric names, as labels may have, become `_`."""
    found = ((NOT_IN_METRICS.sub("_", name), value) for name, value in flatten(facts))
    return {name: value for name, value in found if isinstance(value, int | float)}


def measured(facts: Mapping[str, Any]) -> dict[str, float]:
    """The numbers for MLflow: without the 28 per task that `evaluations` repeats from the asset `contamination`."""
    return numbers({name: value for name, value in facts.items() if name != "contamination"})


def of_artifact(made: Artifact) -> dict[str, Any]:
    """Metadata of a materialization: pictures and cards first, then every fact."""
    drawings = sorted(made.path.glob("*.png"))
    shown: dict[str, Any] = {picture.stem: _embedded(picture.read_bytes()) for picture in drawings}
    if made.kind in ("raw_corpus", "nsp_dataset", "masked_dataset"):
        shown["dagster/column_schema"] = _columns(_schema(made))
    if made.kind == "raw_corpus":
        shown["dagster/row_count"] = made.facts["train_documents"] + made.facts["heldout_documents"]
        shown["data_card"] = dg.MetadataValue.md(card.card_in_markdown(made.facts))
        shown["data_card_page"] = dg.MetadataValue.path(str(made.path / card.PAGE))
    if made.kind == "evaluations":
        shown["scores"] = dg.MetadataValue.md(scores_markdown(made.facts))
    facts = {name: value for name, value in made.facts.items() if name not in ON_THE_CARD}
    shown |= {name: _shown(name, value) for name, value in flatten(facts)}
    return shown | {
        "path": dg.MetadataValue.path(str(made.path)),
        "fingerprint": made.fingerprint,
        "inputs": made.record["origin"]["inputs"],
        "built_at": made.record["made"]["at"],
        "built_in_seconds": made.record["made"]["seconds"],
    }


def of_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with the plan of the recipe (disk, memory, time), to compare with what the run took."""
    return {"plan": dg.MetadataValue.md(fenced(table.show(plan)))} | {
        f"plan/{name}": value for name, value in numbers({part: plan[part] for part in ("text", "disk")}).items()
    }


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):  # a histogram: flatten leaves no other mapping
        unit = name.rsplit("/", 1)[-1].removesuffix("_histogram").replace("_", " ")
        return _embedded(pictures.histogram(value["edges"], value["counts"], xlabel=unit, ylabel="count"))
    if isinstance(value, str) and len(value) > 40:
        return dg.MetadataValue.md(fenced(value))
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def _is_histogram(value: Mapping[str, Any]) -> bool:
    return value.keys() == {"edges", "counts"}


def _embedded(png: bytes) -> dg.MetadataValue:
    return dg.MetadataValue.md(f"![](data:image/png;base64,{base64.b64encode(png).decode()})")


def _schema(made: Artifact) -> pa.Schema:
    if made.kind == "raw_corpus":
        return CORPUS_SCHEMA
    return read_table(next(made.path.rglob("shard-*.arrow"))).schema


def _columns(schema: pa.Schema) -> dg.TableSchema:
    return dg.TableSchema(
        [
            dg.TableColumn(field.name, str(field.type), constraints=dg.TableColumnConstraints(nullable=field.nullable))
            for field in schema
        ]
    )
