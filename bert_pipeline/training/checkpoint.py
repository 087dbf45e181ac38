"""Checkpoints: whole or not there, verified before they are used, and enough to go on bit for bit.

    checkpoints/step-00001000/model.safetensors       parameters by name
    checkpoints/step-00001000/optimizer.safetensors   AdamW's moments as PARAMETER/exp_avg and so on
    checkpoints/step-00001000/checkpoint.json         the step, the run's identity, and what else belongs to the step
    checkpoints/step-00001000/SHA256SUMS              of the three files; `sha256sum -c` reads it, too
    checkpoints/*.partial, checkpoints/*.deleted      what a crash left of a save; the next one removes it

There is nothing else to keep: batches, masks and dropout are functions of (seed, step), the learning rate is one of
the step, and a gradient scaler is not in use (float16 is refused). Nothing here is a pickle, so a checkpoint cannot
execute anything when it is read.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterable
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bert_pipeline.core.files import file_digest, flush_to_disk
from bert_pipeline.training.distributed import like, whole

FILES = MODEL, OPTIMIZER, RECORD = "model.safetensors", "optimizer.safetensors", "checkpoint.json"
SUMS = "SHA256SUMS"

MAX_FAILED_SAVES = 3
"""In a row: the disk will not mend itself, and what is learned meanwhile would be lost."""

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A run cannot go on from what is there, or cannot save any more."""


class ForeignCheckpoint(CheckpointError):
    """A whole checkpoint of another run, or of another model or optimizer."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files are not those that were written."""


class Checkpoints:
    """The checkpoints of one run: of one recipe and its data, which `identity` stands for."""

    def __init__(self, folder: Path, identity: str, kept: int) -> None:
        self.folder, self.identity, self.kept = folder, identity, kept
        self._failed_saves = 0

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Write the checkpoint of `step`, then delete all but the newest whole ones.

        All processes call it, the main one writes: whole tensors, however they are shared out. `state` (JSON values)
        comes back from `load_newest` as it was. A save that fails leaves the checkpoints as they were and training
        goes on; the third in a row raises CheckpointError, as do weights that are not finite.
        """
        tensors = {
            file: {key: whole(tensor).contiguous() for key, tensor in parts.items()}
            for file, parts in _tensors(model, optimizer).items()
        }
        if not PartialState().is_main_process:
            return
        final = self._path(step)
        _assert_finite(final, tensors)
        partial = final.with_name(final.name + ".partial")
        try:
            self._remove_leftovers()
            partial.mkdir(parents=True)
            for name, parts in tensors.items():
                save_file(parts, partial / name)
            record = {"step": step, "identity": self.identity, "state": state}
            (partial / RECORD).write_text(json.dumps(record), encoding="utf-8")
            (partial / SUMS).write_text("".join(f"{line}\n" for line in _sums(partial)), encoding="utf-8")
            flush_to_disk(partial)
            # Where a run went back behind damaged checkpoints, they stand at this step and after it.
            self._rename_away(path for path in self._newest_first() if _step(path) >= step)
            partial.rename(final)
            flush_to_disk(self.folder, recurse=False)
            flush_to_disk(self.folder.parent, recurse=False)
        except (OSError, SafetensorError) as error:  # the latter is what a full disk is to safetensors
            shutil.rmtree(partial, ignore_errors=True)
            self._failed_saves += 1
            if self._failed_saves == MAX_FAILED_SAVES:
                raise CheckpointError(
                    f"{final} could not be saved, the third failure in a row: {error}; remedy: see to the disk under "
                    f"{self.folder} and run again; training goes on from the newest checkpoint there"
                ) from error
            log.warning("%s could not be saved, training goes on without it: %s", final, error)
        else:
            self._failed_saves = 0
            self._retire()

    def load_newest(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]] | None:
        """Restore the newest whole checkpoint and return (step, state); None where nothing was saved yet.

        A damaged one is named in the log, and the one before it is used. Call it in every process: the main process
        chooses, so that all go on from one step, and each reads and verifies the files.
        """
        process = PartialState()
        record = self._newest_record() if process.is_main_process else None
        step = int(broadcast(torch.tensor(record["step"] if record else 0, device=process.device)))
        if step == 0:
            return None
        path = self._path(step)
        try:
            record = record or _verified_record(path)
        except DamagedCheckpoint as error:
            raise CheckpointError(
                f"process {process.process_index} cannot read what the main process goes on from: {error}; "
                "remedy: an output directory on a file system that all machines share"
            ) from error
        if record["identity"] != self.identity:
            raise ForeignCheckpoint(
                f"{path} holds work of another recipe, of other data or of other code ({record['identity']}, not "
                f"{self.identity}); remedy: remove {self.folder} to train from the start"
            )
        wanted = _tensors(model, optimizer)
        found = {name: load_file(path / name) for name in wanted}
        for name in wanted:
            _check_layout(path / name, wanted[name], found[name])
        for name, tensors in wanted.items():
            for key, tensor in tensors.items():
                tensor.copy_(like(found[name][key], tensor))
        return step, record["state"]

    def _newest_record(self) -> dict[str, Any] | None:
        damages = []
        for path in self._newest_first():
            try:
                return _verified_record(path)
            except DamagedCheckpoint as error:
                log.warning("%s; going back to the checkpoint before it", error)
                damages.append(str(error))
        if damages:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole: {'; '.join(damages)}; remedy: put a whole one back from a "
                f"copy, or remove {self.folder} to train from the start"
            )
        return None

    def _retire(self) -> None:
        """Delete all but the newest `kept` whole checkpoints; a damaged one does not count, so they are read."""
        _, *older = self._newest_first()
        kept = list(islice((path for path in older if _is_whole(path)), self.kept - 1))
        try:
            self._rename_away(path for path in older if path not in kept)
            flush_to_disk(self.folder, recurse=False)
        except OSError as error:
            log.warning("old checkpoints in %s could not be deleted: %s", self.folder, error)
        self._remove_leftovers()

    def _rename_away(self, checkpoints: Iterable[Path]) -> None:
        """To a name that is no checkpoint's: half deleted by a crash, it would otherwise pass for a damaged one."""
        for path in checkpoints:
            path.rename(path.with_name(path.name + ".deleted"))

    def _remove_leftovers(self) -> None:
        for path in (*self.folder.glob("step-*.partial"), *self.folder.glob("step-*.deleted")):
            try:
                shutil.rmtree(path)
            except OSError as error:
                log.warning("%s could not be deleted: %s", path, error)

    def _newest_first(self) -> list[Path]:
        found = (path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
        return sorted(found, key=_step, reverse=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """All that a checkpoint keeps, by file and name: the very tensors, to be read, or to be copied into."""
    parameters: dict[str, torch.Tensor] = {}
    moments: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        parameters[name] = parameter.detach()
        state = optimizer.state[parameter]
        if not state:  # it has not made a step yet, and AdamW would begin with these zeros
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        moments |= {f"{name}/{key}": value for key, value in state.items()}
    return {MODEL: parameters, OPTIMIZER: moments}


def _assert_finite(path: Path, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
    for file, parts in tensors.items():
        for name, tensor in parts.items():
            if not tensor.isfinite().all():
                raise CheckpointError(
                    f"{path / file} is not written: {name} is not finite; remedy: run again, training goes on from the "
                    "newest checkpoint; where it comes back, a lower pretrain.phases.learning_rate"
                )


def _check_layout(path: Path, wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Raise ForeignCheckpoint where a file, whole as it is, is that of another model or optimizer."""

    def layout(tensors: dict[str, torch.Tensor], name: str) -> str:
        return f"{tensors[name].dtype} {tuple(tensors[name].shape)}" if name in tensors else "no such tensor"

    for name in sorted(wanted.keys() | found.keys()):
        if layout(wanted, name) != layout(found, name):
            raise ForeignCheckpoint(
                f"{path}: {name}: expected {layout(wanted, name)}, found {layout(found, name)}; "
                "remedy: run the code that wrote it, or remove the checkpoints to train from the start"
            )


def _verified_record(path: Path) -> dict[str, Any]:
    """The record of a checkpoint, after all its files were read and found as they were written."""
    try:
        recorded = (path / SUMS).read_bytes().decode(errors="replace").split("\n")
        found = [*_sums(path), ""]
        record = json.loads((path / RECORD).read_bytes()) if found == recorded else {}
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} is no whole checkpoint: {error}") from error
    for name, now, then in zip_longest((*FILES, SUMS), found, recorded, fillvalue="nothing"):
        if now != then:
            raise DamagedCheckpoint(f"{path / name} is damaged: SHA-256 {now!r}, but {SUMS} has {then!r:.100}")
    if record.keys() != {"step", "identity", "state"} or record["step"] != _step(path):
        raise DamagedCheckpoint(
            f"{path / RECORD} is not of this checkpoint: expected step {_step(path)} with identity and state, "
            f"found step {record.get('step')} with {', '.join(record)}"
        )
    return record


def _is_whole(path: Path) -> bool:
    try:
        _verified_record(path)
    except DamagedCheckpoint:
        return False
    return True


def _sums(path: Path) -> list[str]:
    """The lines of SHA256SUMS, as the files are now."""
    return [f"{file_digest(path / name)}  {name}" for name in FILES]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
