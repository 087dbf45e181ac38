"""MLM and NSP loss and accuracy on held-out pairs, with their masks in the masked_dataset."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from bert_pipeline.store import artifact
from bert_pipeline.training.batches.dataset import PairDataset
from bert_pipeline.training.batches.packing import micro_batches, pack
from bert_pipeline.training.model.loss import PretrainingLoss


def chosen_rows(pairs: int, num_rows: int) -> np.ndarray:
    """(min(pairs, num_rows),) int64: row numbers at equal distances, because a shard holds documents of one source."""
    count = min(pairs, num_rows)
    return np.arange(count) * num_rows // max(count, 1)


def heldout_scores(
    loss: torch.nn.Module, dataset: PairDataset, pairs: int, tokens: int, accelerator: Accelerator
) -> dict[str, float]:
    """Means over `pairs` held-out rows, spread evenly over all of them: mlm_loss, mlm_accuracy, nsp_loss, nsp_accuracy.

    There are no NSP scores if no row has a next-sentence label. The rows are divided among the processes; `tokens`
    limits a micro-batch.
    """
    mine = chosen_rows(pairs, dataset.num_rows(0))[accelerator.process_index :: accelerator.num_processes]
    sums = torch.zeros(6, dtype=torch.float64)
    was_training = loss.training
    loss.eval()
    with torch.inference_mode():
        for part in micro_batches(dataset.rows(0, mine), tokens) if len(mine) else ():
            with accelerator.autocast():
                found = loss(**{name: t.to(accelerator.device) for name, t in pack(part).items()})
            counts = [part.num_masked, part.num_labelled]
            sums += torch.tensor([float(value) for value in found] + counts, dtype=torch.float64)
    loss.train(was_training)
    mlm_loss, nsp_loss, mlm_correct, nsp_correct, masked, labelled = accelerator.reduce(
        sums.to(torch.float32 if accelerator.device.type == "mps" else torch.float64).to(accelerator.device)
    ).tolist()
    scores = {"mlm_loss": mlm_loss / masked, "mlm_accuracy": mlm_correct / masked}
    if labelled:
        scores |= {"nsp_loss": nsp_loss / labelled, "nsp_accuracy": nsp_correct / labelled}
    return scores


def score_heldout(checkpoint: Path, nsp_dataset: Path, masked_dataset: Path, heldout_pairs: int) -> dict[str, float]:
    """Score a finished checkpoint at the sequence length of its last phase."""
    from transformers import BertForPreTraining

    section = artifact.load(checkpoint, "pretrained_checkpoint").record["origin"]["section"]
    max_seq_length = section["phases"][-1]["max_seq_length"]
    dataset = PairDataset(nsp_dataset, masked_dataset, max_seq_length, "heldout")
    accelerator = Accelerator()
    model = BertForPreTraining.from_pretrained(checkpoint, use_safetensors=True)
    loss = PretrainingLoss(model).to(accelerator.device)
    return heldout_scores(loss, dataset, heldout_pairs, 16_384, accelerator)
