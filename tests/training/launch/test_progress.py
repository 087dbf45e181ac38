"""What is logged of the progress of training."""

import logging

import pytest

from bert_pipeline.training.launch import progress
from bert_pipeline.training.launch.progress import TrainingProgress


def row(step, seconds, steps=50, loss=6.0):
    """The row of a window of `steps` steps that took `seconds`."""
    return {"step": step, "learning_rate": 1e-3, "loss": loss, "tokens": 100 * steps} | {
        "tokens_per_second": 100 * steps / seconds
    }


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, to be set as clock[0]."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_remaining_time_of_a_resumed_run(clock, caplog):
    """All rows of the earlier run come at once, and again without those after the checkpoint."""
    caplog.set_level(logging.INFO)
    earlier = [row(1, 30.0, steps=1), row(50, 24.5), *(row(step, 25.0) for step in range(100, 1200, 50))]
    followed = TrainingProgress(num_steps=2000)
    followed(earlier)
    clock[0] += 20
    followed(earlier[:-3])
    clock[0] += 20
    followed([row(1050, 25.0)])
    assert [record.getMessage() for record in caplog.records] == [
        "pretrain: step 1000/2000  loss 6.0000  lr 1.00e-03  200 tokens/s  ETA 0:08:20",
        "pretrain: step 1050/2000  loss 6.0000  lr 1.00e-03  200 tokens/s  ETA 0:07:55",
    ]


def test_the_remaining_time_follows_a_change_of_pace(clock, caplog):
    caplog.set_level(logging.INFO)
    followed = TrainingProgress(num_steps=4000)
    followed([row(1, 30.0, steps=1), row(50, 9.8)])
    for step in range(100, 2050, 50):
        clock[0] += 10
        followed([row(step, 10.0 if step <= 1000 else 20.0)])
    told = [record.getMessage().rpartition("ETA ")[2] for record in caplog.records]
    assert (told[0], told[18], told[38]) == ("0:13:00", "0:10:00", "0:13:20")


def test_the_first_step_tells_no_remaining_time(clock, caplog):
    caplog.set_level(logging.INFO)
    followed = TrainingProgress(num_steps=100)
    clock[0] += 60
    followed([row(1, 50.0, steps=1)])
    assert caplog.messages == ["pretrain: step 1/100  loss 6.0000  lr 1.00e-03  2 tokens/s  ETA unknown"]


def test_skipped_steps_are_told_at_once_and_the_last_step_always(clock, caplog):
    caplog.set_level(logging.INFO)
    followed = TrainingProgress(num_steps=100)
    followed([{"step": 50, "learning_rate": 1e-3, "skipped_steps": 50}])
    followed([row(100, 5.0), {"step": 100, "heldout_mlm_loss": 5.5}])
    assert caplog.messages == [
        "pretrain: step 50/100  all steps between two rows were skipped",
        "pretrain: step 100/100  loss 6.0000  lr 1.00e-03  1,000 tokens/s  ETA 0:00:00",
        "pretrain: step 100/100  held-out: mlm_loss 5.5000",
    ]
