"""Turns, rates, ratios and tables."""

import json
import os

import pytest

from benchmarks import rows
from benchmarks.children import MeasurementError, measure
from benchmarks.peers.environments import PeerError


def test_a_row_has_the_best_rates_and_their_ratio():
    def answers(*seconds):
        return [{"tokens": 6_000_000, "seconds": each, "process_seconds": each + 1} for each in seconds]

    row = rows.row("encode", answers(3.0, 2.0), answers(6.0, 12.0), "a library", max_seq_length=128)
    assert row.keys() >= {"name", "ours", "peer", "peer_name", "unit", "ratio"}
    assert (row["ours"], row["peer"], row["ratio"], row["unit"]) == (3.0, 1.0, 3.0, "M tokens/s")
    assert row["measured"]["peer"]["tokens"] == [6_000_000] * 2 and row["measured"]["ours"]["seconds"] == [3.0, 2.0]


def test_the_worst_ratio_of_all_texts_comes_first():
    def text(name, **ratios):
        rows_of_text = [{"name": each, "peer_name": "peer", "ratio": ratio} for each, ratio in ratios.items()]
        memory = {
            "megabytes_whole": 60.0,
            "megabytes_quarter": 15.0,
            "peak_mib_whole": 300.0,
            "peak_mib_quarter": 290.0,
        }
        about = {"name": name, "documents": 7, "megabytes": 1.0, "vocab_size": 8, "disk": {}}
        for row in rows_of_text:
            row |= {"ours": row["ratio"], "peer": 1.0 if row["ratio"] else None, "reason": "no peer"}
            row["measured"] = {"ours": {"seconds": [1.0]}, "peer": {"seconds": [2.0]}}
        return about | {"rows": rows_of_text, "memory": memory | {"growth_fraction": 0.03}}

    texts = [text("a.txt", encode=50.0, loader=20.0, pairs=None), text("b.txt", encode=30.0, loader=40.0, pairs=10.0)]
    found = rows.extremes(texts)
    shown = [(row["name"], row["worst"]["ratio"], row["worst"]["text"], row["best"]["text"]) for row in found]
    assert shown == [
        ("pairs", 10.0, "b.txt", "b.txt"),
        ("loader", 20.0, "a.txt", "b.txt"),
        ("encode", 30.0, "b.txt", "a.txt"),
    ]
    result = {"machine": {"cpu": "CPU", "cores": 1, "python": "3"}, "extremes": found, "first_compilation_seconds": 9.0}
    table = rows.table(result | {"texts": texts})
    assert table.index("10.0x") < table.index("a.txt: 7 documents") < table.index("no peer") < table.index("b.txt: 7")
    assert "worst" not in rows.table(result | {"texts": texts[:1]})


def test_a_failed_peer_has_a_row_with_the_reason_and_a_failure_of_ours_raises():
    def fails(number):
        raise PeerError("pip cannot install it")

    def works(number):
        return {"tokens": 1_000_000, "seconds": 1.0, "process_seconds": 1.5}

    answers = rows.take_turns({"ours": works}, {"theirs": fails}, rounds=2)
    row = rows.row("whole-way", answers["ours"], answers["theirs"], "theirs")
    assert (row["ours"], row["peer"], row["ratio"], row["reason"]) == (1.0, None, None, "pip cannot install it")
    assert json.loads(json.dumps(row)) == row
    with pytest.raises(PeerError):
        rows.take_turns({"ours": fails}, {"theirs": works}, rounds=2)


def test_a_measurement_answers_or_raises_the_last_line_of_stderr(tmp_path):
    core = min(os.sched_getaffinity(0))
    arguments = {"text": None, "fields": ["text"], "megabytes": 0.01, "folder": tmp_path / "sample"}
    answer = measure("benchmarks.text", "take", cores={core}, **arguments)
    assert answer["documents"] > 1 and answer["process_seconds"] > 0
    with pytest.raises(MeasurementError, match=r"benchmarks.text take: FileExistsError: .*sample"):
        measure("benchmarks.text", "take", cores={core}, **arguments)
