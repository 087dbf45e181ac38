"""Training with an injected fault: `SABOTAGE=... python sabotaged.py JOB.json`.

SABOTAGE="RANK PHASE STEP DEED" happens once, in the first attempt of a launch. RANK: a number, or `all`. PHASE: data
(the batch is prepared), forward, backward, heldout, save. STEP counts from 0. DEED: a signal to the process itself
(KILL, STOP, TERM), TERM-LAUNCHER, or NAN (the loss of a micro-batch; only in the phase `backward`).
"""

import os
import pathlib
import runpy
import signal
import sys
import time

from accelerate import Accelerator

from bert_pipeline.training import heldout, utilization
from bert_pipeline.training.batches.steps import StepReader
from bert_pipeline.training.model.loss import PretrainingLoss

RANK, PHASE, STEP, DEED = os.environ.get("SABOTAGE", "none none 0 none").split()
TURN = RANK in ("all", os.environ.get("RANK", "0")) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
at = {"step": 0, "done": not TURN}


def due(phase: str, step: int) -> bool:
    if at["done"] or phase != PHASE or step != int(STEP):
        return False
    at["done"] = True
    print(
        f"SABOTAGE {time.time():.3f} {os.environ.get('RANK', '0')} {PHASE} {STEP} {DEED}", file=sys.stderr, flush=True
    )
    return True


def enter(phase: str, step: int) -> None:
    if DEED != "NAN" and due(phase, step):
        launcher = DEED.endswith("-LAUNCHER")
        os.kill(os.getppid() if launcher else os.getpid(), getattr(signal, "SIG" + DEED.removesuffix("-LAUNCHER")))


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
    enter("backward", at["step"])
    backward(self, loss * float("nan") if DEED == "NAN" and due("backward", at["step"]) else loss, **options)


utilization.SIZES["cpu"], utilization.TIMED_SECONDS = 64, 0.0  # measuring takes a second, and is no part of the trace
StepReader.read, Accelerator.backward = counted, poisoned
before(StepReader, "step", "data", lambda _, number: number)
before(PretrainingLoss, "forward", "forward")
before(heldout, "heldout_scores", "heldout")
before(pathlib.Path, "rename", "save")  # the last call of a save
runpy.run_module("bert_pipeline.training.pretrain", run_name="__main__")
