"""`bert-pipeline inspect DIR`: the facts of any artifact, and its first rows with token ids decoded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_pipeline.formats.corpus import CORPUS_SCHEMA, corpus_shards
from bert_pipeline.formats.metrics import read_rows
from bert_pipeline.formats.pairs import MaskShard, PairShard
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact, ArtifactError

Rows = list[Any]


def inspect(path: Path, tokenizer: Path | None, count: int) -> dict[str, Any]:
    """Kind, fingerprint, inputs, facts, and up to `count` rows of the artifact in `path`.

    Raises ArtifactError if it is not an artifact, or if the tokenizer or the pairs for its rows are not found.
    """
    made = artifact.load(path)
    return {
        "kind": made.kind,
        "path": str(path),
        "fingerprint": made.fingerprint,
        "origin": made.record["origin"],
        "made": made.record["made"],
        "facts": made.facts,
        "rows": _ROWS[made.kind](made, tokenizer, count) if made.kind in _ROWS else [],
    }


def _documents(made: Artifact, tokenizer: Path | None, count: int) -> Rows:
    return next(corpus_shards(made.path, "train")[0].batches(*CORPUS_SCHEMA.names)).slice(0, count).to_pylist()


def _pieces(made: Artifact, tokenizer: Path | None, count: int) -> Rows:
    return made.facts["worst_words"][:count]


def _pairs(made: Artifact, tokenizer: Path | None, count: int) -> Rows:
    vocabulary = read_tokenizer(tokenizer or _beside(made, "tokenizer"))
    pairs = PairShard.read(_first_shard(made.path))
    rows = []
    for n in range(min(count, len(pairs))):
        ids = pairs.input_ids[pairs.offsets[n] : pairs.offsets[n + 1]].tolist()
        label = int(pairs.next_sentence_label[n])
        rows.append({"next_sentence_label": label, "text": vocabulary.decode(ids, skip_special_tokens=False)})
    return rows


def _masked(made: Artifact, tokenizer: Path | None, count: int) -> Rows:
    vocabulary = read_tokenizer(tokenizer or _beside(made, "tokenizer"))
    path = _first_shard(made.path)
    masks = MaskShard.read(path)
    pairs = PairShard.read(_beside(made, "nsp_dataset") / path.relative_to(made.path))
    rows = []
    for n in range(min(count, len(pairs))):
        ids = pairs.input_ids[pairs.offsets[n] : pairs.offsets[n + 1]].copy()
        masked = masks.positions[masks.offsets[n] : masks.offsets[n + 1]]
        asked = [vocabulary.id_to_token(number) for number in ids[masked].tolist()]
        ids[masked] = masks.input_ids[masks.offsets[n] : masks.offsets[n + 1]]
        rows.append({"text": vocabulary.decode(ids.tolist(), skip_special_tokens=False), "asked_for": asked})
    return rows


def _metrics(made: Artifact, tokenizer: Path | None, count: int) -> Rows:
    return read_rows(made.path / "metrics.jsonl")[-count:]


def _scores(made: Artifact, tokenizer: Path | None, count: int) -> Rows:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(made.path.glob("*/scores.json"))]


_ROWS: dict[str, Callable[[Artifact, Path | None, int], Rows]] = {
    "raw_corpus": _documents,
    "tokenizer": _pieces,
    "nsp_dataset": _pairs,
    "masked_dataset": _masked,
    "pretrained_checkpoint": _metrics,
    "evaluations": _scores,
}


def _first_shard(dataset: Path) -> Path:
    return sorted(dataset.glob("len-*/train/pass-000/shard-*.arrow"))[0]


def _beside(made: Artifact, kind: str) -> Path:
    """The directory of an artifact's input, in the same store or in a sibling folder.

    Raises ArtifactError if it is in neither.
    """
    fingerprint = made.record["origin"]["inputs"][kind]
    for path in (made.path.parents[1] / kind / fingerprint, *sorted(made.path.absolute().parent.iterdir())):
        if (path / "record.json").is_file() and artifact.load(path).fingerprint == fingerprint:
            return path
    raise ArtifactError(f"{made.path}: its {kind} ({fingerprint}) is not beside it; remedy: move both into one folder")
