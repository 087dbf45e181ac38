"""The contamination report: which documents of the raw corpus hold examples of the evaluation sets.

    contamination/contamination.jsonl   one line per document and example that share an n-gram or a PMID

overlap.py defines when a document holds an example. Each worker searches one shard with a memory-mapped index of the
examples and returns only counts, so memory does not grow with the corpus.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

from bert_pipeline.data.contamination.overlap import EvaluationIndex, EvaluationText, Rule
from bert_pipeline.formats.corpus import CorpusShard, corpus_shards
from bert_pipeline.formats.tables import SPLITS
from bert_pipeline.store.artifact import Facts
from bert_pipeline.store.executors import map_shards

ROWS = "contamination.jsonl"
RULES: tuple[Rule, ...] = get_args(Rule)  # from strongest to weakest
HELD = RULES[:-1]
SHOWN_INSTANCES = 20


class Found(NamedTuple):
    """The result of searching one shard."""

    num_documents: int
    num_holding: int
    documents: Counter[tuple[str, str, str]]  # (task, split, rule) -> documents, by their strongest rule
    rules: dict[int, int]  # number of a found example -> index of its strongest rule


def build_contamination(examples: Sequence[EvaluationText], raw_corpus: Path, out: Path) -> Facts:
    """Write contamination.jsonl; the facts count found examples and documents by task and split."""
    index = EvaluationIndex(examples)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        folder = Path(scratch)
        index.save(folder / "index")
        tasks: list[tuple[str, tuple[Path, CorpusShard, str, Path]]] = []
        for split in SPLITS:
            for shard in corpus_shards(raw_corpus, split):
                part = folder / f"{len(tasks):06d}.jsonl"
                tasks.append((shard.name, (folder / "index", shard, split, part)))
        found = map_shards("contamination", _search_shard, tasks, total=len(tasks))
        with (out / ROWS).open("wb") as rows:
            for part in sorted(folder.glob("*.jsonl")):
                with part.open("rb") as lines:
                    shutil.copyfileobj(lines, rows)
    return {
        "documents": sum(each.num_documents for each in found),
        "documents_that_hold_examples": sum(each.num_holding for each in found),
        "ngrams": len(index.ngrams.hashes),
        "index_megabytes": round(index.ngrams.num_bytes / 1e6, 1),
        "tasks": _by_task(index, found),
        "instances": _instances(out / ROWS),
    }


def _search_shard(index_folder: Path, shard: CorpusShard, split: str, out: Path) -> Found:
    """Search one shard in a worker, and write its rows."""
    index = _open_index(index_folder)
    num_documents = num_holding = 0
    documents: Counter[tuple[str, str, str]] = Counter()
    rules: dict[int, int] = {}
    with out.open("w", encoding="utf-8") as rows:
        for batch in shard.batches("document_id", "sentences"):
            ids = batch["document_id"].to_pylist()
            num_documents += len(ids)
            for number, holdings in index.search(ids, [" ".join(each) for each in batch["sentences"].to_pylist()]):
                strongest: dict[tuple[str, str], int] = {}
                for holding in holdings:
                    row = {"document": ids[number], "corpus_split": split} | holding.row
                    rows.write(json.dumps(row, ensure_ascii=False) + "\n")
                    rule, group = RULES.index(holding.rule), (holding.task, holding.split)
                    rules[holding.number] = min(rules.get(holding.number, rule), rule)
                    strongest[group] = min(strongest.get(group, rule), rule)
                documents.update((*group, RULES[rule]) for group, rule in strongest.items())
                num_holding += any(RULES[rule] in HELD for rule in strongest.values())
    return Found(num_documents, num_holding, documents, rules)


@lru_cache(maxsize=1)
def _open_index(folder: Path) -> EvaluationIndex:
    return EvaluationIndex.load(folder)


def _by_task(index: EvaluationIndex, shards: list[Found]) -> Facts:
    """{task: {split: numbers}}, in the order of the examples."""
    rules: dict[int, int] = {}
    for shard in shards:
        rules |= {number: min(rules.get(number, rule), rule) for number, rule in shard.rules.items()}
    documents = sum((shard.documents for shard in shards), Counter())
    examples: Counter[tuple[str, str]] = Counter(each[:2] for each in index.examples)
    too_short = Counter(
        each[:2] for each, words in zip(index.examples, index.ngrams.num_words, strict=True) if not words
    )
    found = Counter((*index.examples[number][:2], RULES[rule]) for number, rule in rules.items())
    facts: Facts = {}
    for (task, split), count in examples.items():
        held = sum(found[task, split, rule] for rule in HELD)
        facts.setdefault(task, {})[split] = {
            "examples": count,
            "examples_too_short": too_short[task, split],
            "examples_held": held,
            "share_held": round(held / count, 6),
            **{f"examples_{rule}": found[task, split, rule] for rule in RULES},
            **{f"documents_{rule}": documents[task, split, rule] for rule in RULES},
        }
    return facts


def _instances(path: Path) -> str:
    """One line for each of the first SHOWN_INSTANCES documents that hold an example."""
    shown: dict[str, str] = {}
    with path.open(encoding="utf-8") as rows:
        for line in rows:
            row: dict[str, Any] = json.loads(line)
            if row["rule"] in HELD and row["document"] not in shown:
                shown[row["document"]] = (
                    f"{row['document']} holds {row['coverage']:.0%} of {row['task']}/{row['split']} "
                    f"{row['example']} ({row['rule']}, {row['longest_run']} words in a row)"
                )
            if len(shown) == SHOWN_INSTANCES:
                break
    return "\n".join(shown.values())
