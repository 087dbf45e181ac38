import logging

from bert_pipeline.core.progress import LineTimer, Progress


def test_the_last_line_has_rate_and_remaining_time(caplog):
    caplog.set_level(logging.INFO, "bert_pipeline")
    progress = Progress("stage", 1000, "rows")
    for _ in range(10):
        progress.advance(100)
    [line] = caplog.messages
    assert line.startswith("stage: 1,000/1,000 rows  ") and line.endswith("rows/s  ETA 0:00:00")


def test_a_line_every_five_seconds_and_fewer_in_long_work():
    due = LineTimer()
    assert [second for second in range(1, 301) if due(second)] == list(range(5, 301, 5))
    lines = sum(due(second) for second in range(301, 7 * 24 * 3600))
    assert 300 < lines < 600, "a week is a few hundred lines, not a hundred thousand"
