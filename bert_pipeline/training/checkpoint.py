"""Checkpoints: written atomically, verified before use, and sufficient to resume bit for bit where the device computes
the same step twice in the same way: on CPUs with the same processes, threads and micro-batches.

    checkpoints/step-00001000/model.safetensors       parameters by name
    checkpoints/step-00001000/optimizer.safetensors   AdamW's moments as PARAMETER/exp_avg and so on
    checkpoints/step-00001000/checkpoint.json         the step, the run's identity and the training loop's state
    checkpoints/step-00001000/SHA256SUMS              of the three files, in the format of `sha256sum -c`
    checkpoints/*.partial, checkpoints/*.deleted      left by a crash during a save; the next save removes them

Nothing else is needed: batches and masks are functions of (seed, step), dropout is one of (seed, step, process,
micro-batches), the learning rate is a function of the step, and there is no gradient scaler (float16 is refused). There
are no pickles, so loading a checkpoint cannot execute code.
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
from bert_pipeline.training.distributed import at_own_pace
from bert_pipeline.training.model.optim import initial_state

FILES = MODEL, OPTIMIZER, RECORD = "model.safetensors", "optimizer.safetensors", "checkpoint.json"
SUMS = "SHA256SUMS"

MAX_FAILED_SAVES = 3
"""In a row. More failures are unlikely to end by themselves, and all training since the last save would be lost."""

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A run cannot resume from its checkpoints, or cannot save new ones."""


class ForeignCheckpoint(CheckpointError):
    """An intact checkpoint of another run, or of another model or optimizer."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files changed after they were written."""


class Checkpoints:
    """The checkpoints of one run. `identity` is a fingerprint of its recipe and data."""

    def __init__(self, folder: Path, identity: str, kept: int) -> None:
        self.folder, self.identity, self.kept = folder, identity, kept
        self._failed_saves = 0

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Write the checkpoint of `step`, then delete all but the newest `kept` intact ones.

        All processes call it; the main one writes. `load_newest` returns `state` (JSON values). After a failed save
        training continues and the old checkpoints remain. Raise CheckpointError at the third failure in a row, or if a
        weight is not finite.
        """
        if not PartialState().is_main_process:
            return
        tensors = _tensors(model, optimizer)
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
            # After a run fell back past damaged checkpoints, those still exist at this step and later ones.
            self._rename_away(path for path in self._newest_first() if _step(path) >= step)
            partial.rename(final)
            flush_to_disk(self.folder, recurse=False)
            flush_to_disk(self.folder.parent, recurse=False)
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk as SafetensorError
            shutil.rmtree(partial, ignore_errors=True)
            self._failed_saves += 1
            if self._failed_saves == MAX_FAILED_SAVES:
                raise CheckpointError(
                    f"{final} could not be saved, the third failure in a row: {error}; remedy: repair or free the disk "
                    f"under {self.folder} and run again; training resumes from the newest checkpoint there"
                ) from error
            log.warning("%s could not be saved, training continues without it: %s", final, error)
        else:
            self._failed_saves = 0
            self._retire()

    def load_newest(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]] | None:
        """Restore the newest intact checkpoint and return (step, state), or None if there is no checkpoint.

        Damaged checkpoints are logged and skipped. All processes must call it: the main process chooses the step, and
        each process reads and verifies the files. Raise CheckpointError if all checkpoints are damaged or a process
        cannot read the chosen one, and ForeignCheckpoint if it belongs to another run.
        """
        process = PartialState()
        with at_own_pace():
            record = self._newest_record() if process.is_main_process else None
        step = int(broadcast(torch.tensor(record["step"] if record else 0, device=process.device)))
        if step == 0:
            return None
        with at_own_pace():
            return step, self._load(self._path(step), record, model, optimizer)

    def _load(
        self, path: Path, record: dict[str, Any] | None, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """Restore one checkpoint and return the state in it; `record`: its record if this process has verified it."""
        try:
            record = record or _verified_record(path)
        except DamagedCheckpoint as error:
            raise CheckpointError(
                f"process {PartialState().process_index} cannot read the checkpoint that the main process resumes "
                f"from: {error}; remedy: an output directory on a file system that all machines share"
            ) from error
        if record["identity"] != self.identity:
            raise ForeignCheckpoint(
                f"{path} belongs to another recipe, other data or other code ({record['identity']}, not "
                f"{self.identity}); remedy: remove {self.folder} to train from scratch"
            )
        wanted = _tensors(model, optimizer)
        found = {name: load_file(path / name) for name in wanted}
        for name in wanted:
            _check_layout(path / name, wanted[name], found[name])
        for name, tensors in wanted.items():
            for key, tensor in tensors.items():
                tensor.copy_(found[name][key])
        return record["state"]

    def _newest_record(self) -> dict[str, Any] | None:
        damages = []
        for path in self._newest_first():
            try:
                return _verified_record(path)
            except DamagedCheckpoint as error:
                log.warning("%s; falling back to the checkpoint before it", error)
                damages.append(str(error))
        if damages:
            raise CheckpointError(
                f"all checkpoints in {self.folder} are damaged: {'; '.join(damages)}; remedy: restore one from a "
                f"backup, or remove {self.folder} to train from scratch"
            )
        return None

    def _retire(self) -> None:
        """Delete all but the newest `kept` intact checkpoints. They are verified: a damaged one does not count."""
        _, *older = self._newest_first()
        kept = list(islice((path for path in older if _is_intact(path)), self.kept - 1))
        try:
            self._rename_away(path for path in older if path not in kept)
            flush_to_disk(self.folder, recurse=False)
        except OSError as error:
            log.warning("old checkpoints in %s could not be deleted: %s", self.folder, error)
        self._remove_leftovers()

    def _rename_away(self, checkpoints: Iterable[Path]) -> None:
        """Rename before deleting: after a crash a half-deleted checkpoint would look like a damaged one."""
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
    """The tensors of a checkpoint by file and name. Not copies: loading writes into them."""
    parameters: dict[str, torch.Tensor] = {}
    moments: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        parameters[name] = parameter.detach()
        state = optimizer.state[parameter]
        if not state:
            state.update(initial_state(optimizer, parameter))
        moments |= {f"{name}/{key}": value for key, value in state.items()}
    return {MODEL: parameters, OPTIMIZER: moments}


def _assert_finite(path: Path, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
    for file, parts in tensors.items():
        for name, tensor in parts.items():
            if not tensor.isfinite().all():
                raise CheckpointError(
                    f"{path / file} is not written: {name} is not finite; remedy: run again, training resumes from the "
                    "newest checkpoint; if it happens again, lower pretrain.phases.learning_rate"
                )


def _check_layout(path: Path, wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Raise ForeignCheckpoint if an intact file belongs to another model or optimizer."""

    def layout(tensors: dict[str, torch.Tensor], name: str) -> str:
        return f"{tensors[name].dtype} {tuple(tensors[name].shape)}" if name in tensors else "no such tensor"

    for name in sorted(wanted.keys() | found.keys()):
        if layout(wanted, name) != layout(found, name):
            raise ForeignCheckpoint(
                f"{path}: {name}: expected {layout(wanted, name)}, found {layout(found, name)}; "
                "remedy: run the code that wrote it, or remove the checkpoints to train from scratch"
            )


def _verified_record(path: Path) -> dict[str, Any]:
    """Verify all files of a checkpoint and return its record. Raise DamagedCheckpoint if a file changed."""
    try:
        recorded = (path / SUMS).read_bytes().decode(errors="replace").split("\n")
        found = [*_sums(path), ""]
        record = json.loads((path / RECORD).read_bytes()) if found == recorded else {}
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} is not a complete checkpoint: {error}") from error
    for name, now, then in zip_longest((*FILES, SUMS), found, recorded, fillvalue="nothing"):
        if now != then:
            raise DamagedCheckpoint(f"{path / name} is damaged: SHA-256 {now!r}, but {SUMS} has {then!r:.100}")
    if record.keys() != {"step", "identity", "state"} or record["step"] != _step(path):
        raise DamagedCheckpoint(
            f"{path / RECORD} does not belong to this checkpoint: expected step {_step(path)} with identity and state, "
            f"found step {record.get('step')} with {', '.join(record)}"
        )
    return record


def _is_intact(path: Path) -> bool:
    try:
        _verified_record(path)
    except DamagedCheckpoint:
        return False
    return True


def _sums(path: Path) -> list[str]:
    """The lines of SHA256SUMS for the current content of the files."""
    return [f"{file_digest(path / name)}  {name}" for name in FILES]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
