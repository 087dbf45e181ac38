"""The texts of evaluation sets that contamination searches for in a corpus."""

import shutil

import pytest

from bert_pipeline.evaluation.tasks.task import TaskError
from bert_pipeline.evaluation.tasks.texts import evaluation_texts, text_inputs


def test_a_missing_train_file_is_skipped_and_a_missing_test_file_is_an_error(small_tasks, tmp_path, monkeypatch):
    """EBM-PICO, for example, may be available without its train file."""
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(shutil.copytree(small_tasks, tmp_path / "data")))
    splits = [text.split for text in evaluation_texts(["small-pico"])]
    assert [splits.count(split) for split in ("train", "dev", "test")] == [120, 20, 30]
    whole = text_inputs(["small-pico"]), text_inputs(["small-pico"], ("dev", "test"))
    (tmp_path / "data" / "small-pico" / "train.tsv").unlink()
    assert {text.split for text in evaluation_texts(["small-pico"])} == {"dev", "test"}
    assert (text_inputs(["small-pico"]), text_inputs(["small-pico"], ("dev", "test"))) == (whole[1], whole[1])
    (tmp_path / "data" / "small-pico" / "test.tsv").unlink()
    with pytest.raises(TaskError, match=r"small-pico: .*/small-pico has no test\.tsv; remedy"):
        list(evaluation_texts(["small-pico"], ("dev", "test")))
