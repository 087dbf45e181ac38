"""What of the evaluation sets is looked for in a corpus."""

import shutil

import pytest

from bert_pipeline.evaluation.tasks.task import TaskError
from bert_pipeline.evaluation.tasks.texts import evaluation_texts, text_inputs


def test_a_set_without_its_train_file_is_searched_for_and_one_without_test_is_not(small_tasks, tmp_path, monkeypatch):
    """As EBM-PICO is where only its dev and test files could be had."""
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
