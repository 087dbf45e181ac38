"""Training with injected faults: `SABOTAGE=... python sabotaged.py JOB.json`.

SABOTAGE="RANK PHASE STEP DEED", several separated by `;`. Each happens once, in the first attempt of a launch. RANK: a
number, or `all`. PHASE: open (the datasets), load (a checkpoint), data (the batch is prepared), forward, backward,
heldout, save, export. STEP counts from 0. DEED: a signal to the process itself (KILL, STOP, TERM), TERM-LAUNCHER, SLOW
(a pause of three timeouts), or NAN (the loss of a micro-batch; only in the phase `backward`).
"""

import os
import pathlib
import runpy
import signal
import sys
import time

from accelerate import Accelerator

from bert_pipeline.training import export, heldout, utilization
from bert_pipeline.training.batches.dataset import PairDataset
from bert_pipeline.training.batches.steps import StepReader
from bert_pipeline.training.checkpoint import Checkpoints
from bert_pipeline.training.model.loss import PretrainingLoss

MINE = os.environ.get("RANK", "0")
faults = {}  # deeds by (phase, step)
for fault in os.environ.get("SABOTAGE", "none none 0 none").split(";"):
    rank, *moment, deed = fault.split()
    if rank in ("all", MINE) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        faults[tuple(moment)] = deed
at = {"step": 0}


def enter(phase: str, step: int) -> bool:
    """Do the deed that is due; return whether it is NAN, which the caller does."""
    deed = faults.pop((phase, str(step)), None)
    if deed is None:
        return False
    print(f"SABOTAGE {time.time():.3f} {MINE} {phase} {step} {deed}", file=sys.stderr, flush=True)
    if deed == "SLOW":
        time.sleep(3 * int(os.environ["BERT_PIPELINE_TIMEOUT_SECONDS"]))
    elif deed != "NAN":
        launcher = deed.endswith("-LAUNCHER")
        os.kill(os.getppid() if launcher else os.getpid(), getattr(signal, "SIG" + deed.removesuffix("-LAUNCHER")))
    return deed == "NAN"


def before(owner, name, phase, step=lambda *_: at["step"]) -> None:
    """Enter `phase` whenever `owner.name` is called."""
    original = getattr(owner, name)

    def wrapped(*arguments, **options):
        enter(phase, step(*arguments))
        return original(*arguments, **options)

    setattr(owner, name, wrapped)


read, backward = StepReader.read, Accelerator.backward


def counted(self, *arguments):
    for number, *rest in read(self, *arguments):
        at["step"] = number
        yield number, *rest


def poisoned(self, loss, **options):
    backward(self, loss * float("nan") if enter("backward", at["step"]) else loss, **options)


utilization.SIZES["cpu"], utilization.TIMED_SECONDS = 64, 0.0  # measuring takes a second, and is no part of the trace
StepReader.read, Accelerator.backward = counted, poisoned
before(StepReader, "step", "data", lambda _, number: number)
before(PretrainingLoss, "forward", "forward")
before(heldout, "heldout_scores", "heldout")
before(pathlib.Path, "rename", "save")  # the last call of a save
before(PairDataset, "__init__", "open")
before(Checkpoints, "_newest_record", "load")
before(export, "export", "export")
runpy.run_module("bert_pipeline.training.pretrain", run_name="__main__")
