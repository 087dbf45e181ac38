"""Checkpoints: whole or not there, verified when read, and enough to go on bit for bit.

    checkpoints/step-00001000/model.safetensors       parameters
    checkpoints/step-00001000/optimizer.safetensors   AdamW's moments by parameter name
    checkpoints/step-00001000/checkpoint.json         step, what belongs to it, SHA-256 of the two files

Random generators need not be kept: batches, masks and dropout are functions of (seed, step). Nothing
here is a pickle, so a checkpoint cannot execute anything when it is read.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bert_pipeline.artifact import flush_to_disk
from bert_pipeline.training.distributed import is_main_process, like, whole

log = logging.getLogger(__name__)

STATE_FILE = "checkpoint.json"


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files are not what its record says."""


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], kept: int
) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `kept`.

    All processes call it, the main one writes: whole tensors, however they are shared out. `state` (JSON values)
    comes back from `load_newest` as it was.
    """
    parameters = {name: whole(p.detach()) for name, p in model.named_parameters()}
    moments = {
        f"{name}/{key}": whole(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
    final = folder / f"step-{step:08d}"
    if not is_main_process():
        return final
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in parameters.items()}, partial / "model.safetensors")
    save_file(moments, partial / "optimizer.safetensors")
    digests = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
    record = {"step": step, "sha256": digests, "state": state}
    (partial / STATE_FILE).write_text(json.dumps(record), encoding="utf-8")
    flush_to_disk(partial)
    shutil.rmtree(final, ignore_errors=True)  # only a damaged one can stand where a run saves again
    partial.rename(final)
    flush_to_disk(folder, recurse=False)
    for old in sorted(folder.glob("step-????????"))[:-kept]:
        shutil.rmtree(old)
    return final


def load_newest(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest whole checkpoint and return (step, state); None where there is none.

    A damaged one is named in the log, and the one before it is used.
    """
    for path in sorted(folder.glob("step-????????"), reverse=True):
        try:
            record = _verified(path)
        except DamagedCheckpoint as error:
            log.warning("%s; going back to the checkpoint before it", error)
            continue
        parameters = load_file(path / "model.safetensors")
        moments = load_file(path / "optimizer.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(like(parameters[name], parameter))
        for name, parameter in model.named_parameters():
            keys = [key for key in moments if key.rpartition("/")[0] == name]
            optimizer.state[parameter] = {key.rpartition("/")[2]: like(moments[key], parameter) for key in keys}
        return record["step"], record["state"]
    return None


def _verified(path: Path) -> dict[str, Any]:
    try:
        record = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        for name, expected in record["sha256"].items():
            found = _sha256(path / name)
            if found != expected:
                raise DamagedCheckpoint(f"{path / name} is damaged: SHA-256 {found}, recorded {expected}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint(f"{path} is no whole checkpoint: {type(error).__name__}: {error}") from error
    return record


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
