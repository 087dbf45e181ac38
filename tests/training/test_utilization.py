"""The clock of the steps and the peak: what is counted, and a share that cannot exceed 1."""

import pytest
import torch

from bert_pipeline.training import utilization
from bert_pipeline.training.utilization import Peak, Stopwatch
from bert_pipeline.training.window import Window

CPU = torch.device("cpu")


class Clock:
    """Seconds pass when a test says so; a synchronisation takes as long as the kernels in flight."""

    def __init__(self):
        self.now, self.in_flight = 100.0, 0.0

    def monotonic(self):
        return self.now

    def synchronize(self, device):
        self.now, self.in_flight = self.now + self.in_flight, 0.0


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(utilization.time, "monotonic", found.monotonic)
    monkeypatch.setattr(torch.cuda, "synchronize", found.synchronize)
    return found


def test_the_clock_waits_for_the_kernels_of_the_last_step(clock):
    """Two steps of 3 and 2 seconds, half a second between them, 1 second waited for data, and 4 seconds of kernels."""
    stopwatch = Stopwatch(torch.device("cuda"))
    stopwatch.start(waited=1.0)
    clock.now += 3.0
    clock.now += 0.5
    stopwatch.start(waited=0.0)
    clock.now += 2.0
    clock.in_flight = 4.0
    assert stopwatch.stop() == 1.0 + 3.0 + 0.5 + 2.0 + 4.0


def test_work_between_steps_is_not_counted(clock):
    stopwatch = Stopwatch(torch.device("cuda"))
    assert stopwatch.stop() == 0.0
    stopwatch.start(waited=0.0)
    clock.now += 3.0
    assert stopwatch.stop() == 3.0
    clock.now += 60.0  # held-out scores
    assert stopwatch.stop() == 0.0
    stopwatch.start(waited=0.5)
    clock.now += 2.0
    assert stopwatch.stop() == 2.5


def test_a_cpu_is_not_synchronised(clock):
    stopwatch = Stopwatch(CPU)
    stopwatch.start(waited=0.0)
    clock.in_flight = 4.0
    assert stopwatch.stop() == 0.0


def peak_of(monkeypatch, *measured):
    """A peak of two devices whose measurements give these figures, one after the other."""
    coming = iter(measured)
    monkeypatch.setattr(utilization, "matmul_peak", lambda device, dtype: next(coming))
    return Peak(CPU, torch.float32, 2)


def test_a_peak_measured_beside_other_work_is_measured_again(monkeypatch):
    peak = peak_of(monkeypatch, 50.0, 120.0)
    assert peak.utilization(80.0) == (0.8, False)
    assert peak.utilization(190.0) == (190.0 / 240.0, True), "was 1.9"
    assert peak.utilization(120.0) == (0.5, False)


def test_a_peak_is_never_below_what_was_reached(monkeypatch):
    """The second measurement is disturbed too."""
    peak = peak_of(monkeypatch, 50.0, 60.0)
    assert peak.utilization(190.0) == (1.0, True)
    assert peak.utilization(95.0) == (0.5, False)


@pytest.mark.parametrize(("measured", "utilization", "marked"), [((400.0,), 0.25, False), ((1.0, 200.0), 0.5, True)])
def test_a_row_says_that_the_peak_was_raised(monkeypatch, measured, utilization, marked):
    """One step: 10 tokens and 400 operations in 2 seconds, of which 0.5 waited for data."""
    window = Window()
    window.restore(Window().state() | {"sums": [[6.0, 0.0, 1.0, 0.0]], "counts": [[2, 0, 10, 400.0, 0.0, 0.0, 1.0]]})
    window.time(2.0)
    window.wait(0.5)
    row = window.row(peak_of(monkeypatch, *measured))
    assert row["model_flops_utilization"] == utilization
    assert (row["tokens_per_second"], row["data_wait_fraction"]) == (5.0, 0.25)
    assert row.get("peak_raised", 0) == marked


def test_a_measured_peak_is_a_rate():
    """Between a million and 10^15 operations per second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilization, "SIZES", {"cpu": 64})
        patch.setattr(utilization, "TIMED_SECONDS", 0.0)
        assert 1e6 < utilization.matmul_peak(CPU, torch.float32) < 1e15
