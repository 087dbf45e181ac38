"""The text of a benchmark."""

import json
from itertools import islice

import numpy as np
import pytest

from benchmarks import scripts, text
from bert_pipeline.fitting.fields import choose_fields


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_text_is_taken_from_a_file_up_to_its_megabytes(tmp_path, suffix):
    source = tmp_path / f"texts{suffix}"
    records = [f"Document number {number} says little." for number in range(100)]
    if suffix == ".txt":
        source.write_text("\n\n".join(records))
    else:
        lines = [json.dumps({"id": number, "title": f"T{number}", "text": each}) for number, each in enumerate(records)]
        source.write_text("\n".join(lines))
    fields = choose_fields(str(source))[0]
    assert fields == (("text",) if suffix == ".txt" else ("title", "text"))
    taken = text.take(str(source), fields, megabytes=0.001, folder=str(tmp_path / "taken"))
    copied = [json.loads(line) for line in (tmp_path / "taken" / "text.jsonl").read_text().splitlines()]
    assert taken["documents"] == len(copied) < 100 and 0.001 <= taken["megabytes"] < 0.0011
    assert [each["text"].strip() for each in copied] == records[: len(copied)]


def test_text_is_spread_over_the_whole_file(tmp_path):
    (tmp_path / "texts.txt").write_text("\n\n".join(f"Document number {number:04d}." for number in range(1000)))
    taken = text.take(str(tmp_path / "texts.txt"), ("text",), 0.002, str(tmp_path / "taken"), among=100.0)
    numbers = [int(line.split()[-1][:4]) for line in (tmp_path / "taken" / "text.jsonl").read_text().splitlines()]
    assert taken["documents"] == len(numbers) < 150
    assert set(np.diff(numbers)) == {10} and numbers[0] == 0 and numbers[-1] >= 900


def test_generated_text_is_the_same_each_time_and_not_ascii(run_python):
    for name in scripts.SCRIPTS:
        documents = list(islice(scripts.SCRIPTS[name].documents(), 3))
        assert documents == list(islice(scripts.SCRIPTS[name].documents(), 3))
        assert all(document == document.strip() and "\n\n" not in document for document in documents)
        assert sum(map(str.isascii, "".join(documents))) < len("".join(documents)) / 2
    written = run_python("-m", "benchmarks.scripts", "korean", "--megabytes", "0.01", PYTHONIOENCODING="utf-8").stdout
    first = next(scripts.SCRIPTS["korean"].documents())
    assert written.startswith(f"{first}\n\n") and 10_000 < len(written.encode()) < 15_000
