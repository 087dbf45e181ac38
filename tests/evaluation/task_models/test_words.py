"""The words of a raw text are those of the files that a task model was trained on."""

import os
from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import BertPreTokenizer

from bert_pipeline.evaluation.finetuning.export import joining_characters
from bert_pipeline.evaluation.task_models.annotate import words_of
from bert_pipeline.evaluation.tasks.readers import read_split
from bert_pipeline.evaluation.tasks.task import find_task, task_folder


@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
@pytest.mark.parametrize(
    ("name", "least", "joining"), [("BC5CDR-chem", 1.0, ""), ("NCBI-disease", 1.0, ""), ("JNLPBA", 0.99, "*-/_")]
)
def test_words_of_real_sentences_are_found(name, least, joining):
    """JNLPBA has hyphens inside words; without joining, 93.7 % of its words are found."""
    task = find_task(name)
    folder = task_folder(task, None, Path())
    train, dev = (read_split(task, folder / f"{split}.tsv") for split in ("train", "dev"))
    assert joining_characters(train) == joining
    found = count = 0
    for sentence in dev:
        text = " ".join(sentence.tokens)
        pre_tokens = [place for _, place in BertPreTokenizer().pre_tokenize_str(text)]
        ends = [len(" ".join(sentence.tokens[: n + 1])) for n in range(len(sentence.tokens))]
        words = {(end - len(token), end) for token, end in zip(sentence.tokens, ends, strict=True)}
        found, count = found + len(words & set(words_of(text, pre_tokens, joining))), count + len(words)
    assert found >= least * count
