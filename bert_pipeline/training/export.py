"""The trained model as a Hugging Face directory: the export at the end of a run, and snapshots on the way."""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import BertForPreTraining

from bert_pipeline.training.batches.dataset import PairDataset
from bert_pipeline.training.batches.packing import pad
from bert_pipeline.training.model.units import active_units


class Exported(NamedTuple):
    """The exported model on up to 8 held-out pairs, loaded with plain transformers."""

    max_logit_difference: float
    """Largest absolute difference of its logits to those of the trained model."""
    active_units_by_layer: list[float]
    """Share of each layer's feed-forward units that are active on a token."""


def export(model: BertForPreTraining, tokenizer: Path, out: Path, heldout: PairDataset) -> Exported:
    """Write the model and its tokenizer into `out`, load them with plain transformers, and compare both models."""
    _write(model, tokenizer, out)
    model.set_attn_implementation("sdpa")
    batch = pad(heldout.rows(0, np.arange(min(8, heldout.num_rows(0)))))
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
    plain = BertForPreTraining.from_pretrained(out, use_safetensors=True).eval()
    with torch.inference_mode():
        expected, found = model.cpu().float().eval()(**inputs), plain(**inputs)
    tokens = inputs["attention_mask"].bool()
    difference = max(
        float((expected.prediction_logits - found.prediction_logits)[tokens].abs().max()),
        float((expected.seq_relationship_logits - found.seq_relationship_logits).abs().max()),
    )
    return Exported(difference, [units.active for units in active_units(plain.bert, [inputs])])


def save_snapshot(model: BertForPreTraining, tokenizer: Path, path: Path) -> None:
    """Write a Hugging Face directory atomically. A step that is repeated after a resume replaces its snapshot."""
    partial = path.with_name(path.name + ".partial")
    for each in (partial, path):
        shutil.rmtree(each, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(model, tokenizer, partial)
    partial.rename(path)


def _write(model: BertForPreTraining, tokenizer: Path, out: Path) -> None:
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors makes it readable by the owner only
    for path in tokenizer.iterdir():
        if path.name != "record.json":
            shutil.copy2(path, out / path.name)
