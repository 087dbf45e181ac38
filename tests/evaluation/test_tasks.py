import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.evaluation.tasks import (
    MAX_SENTENCE_WORDS,
    TASKS,
    Sentence,
    TaskError,
    find_task,
    num_entities,
    read_ner,
    read_task,
    task_data,
    task_inputs,
)
from bert_pipeline.recipe import EvaluationRecipe, TaskRecipe

REAL_DATA = os.environ.get("BERT_PIPELINE_DATA")


def write(path: Path, sentences: list[Sentence], newline: str = "\n") -> Path:
    blocks = [
        "".join(f"{token}\t{tag}{newline}" for token, tag in zip(sentence.tokens, sentence.tags, strict=True))
        for sentence in sentences
    ]
    path.write_bytes(newline.join(blocks).encode())
    return path


tokens = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\ufeff "), min_size=1)
entities = st.integers(1, 3).map(lambda length: ["B"] + ["I"] * (length - 1))
taggings = st.lists(entities | st.just(["O"]), min_size=1).map(lambda runs: [tag for run in runs for tag in run])


@st.composite
def sentence_lists(draw):
    sentences = [Sentence(("first",), ("B",))]
    for tags in draw(st.lists(taggings, max_size=5)):
        words = draw(st.lists(tokens, min_size=len(tags), max_size=len(tags)))
        sentences.append(Sentence(tuple(words), tuple(tags)))
    return sentences


@given(sentences=sentence_lists(), newline=st.sampled_from(["\n", "\r\n"]))
def test_what_was_written_is_read(tmp_path_factory, sentences, newline):
    path = write(tmp_path_factory.mktemp("ner") / "train.tsv", sentences, newline)
    assert read_ner(path) == sentences


def test_blank_lines_may_repeat_and_a_byte_order_mark_is_no_token(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_bytes("\ufeffaspirin\tB\n\n \n\nhelps\tO\n\n\n".encode())
    assert read_ner(path) == [Sentence(("aspirin",), ("B",)), Sentence(("helps",), ("O",))]


@pytest.mark.parametrize(
    ("content", "line", "value", "remedy"),
    [
        (b"aspirin\tB\nacid\tI-Chemical\n", 2, "'I-Chemical'", "B, I or O"),
        (b"aspirin\tB\nacid\n", 2, "'acid'", "one tab"),
        (b"aspirin\tB\n\n-DOCSTART- 1\n", 3, "'-DOCSTART- 1'", "one tab"),
        (b"aspirin\tNN\tB\n", 1, r"'aspirin\\tNN\\tB'", "one tab"),
        (b"\tB\n", 1, "", "one tab"),
        (b"of\tO\nacid\tI\n", 2, "'acid'", "first word bears B"),
        (b"acid\tB\n\nacid\tI\n", 3, "'acid'", "first word bears B"),
        (b"aspirin\tB\nna\xefve\tO\n", 2, "0xef", "convert the file to UTF-8"),
        (b"\xef\xbb\xbfaspirin\tB\n\xff\tO\n", 2, "0xff", "convert the file to UTF-8"),
        (b"a\tB\n" * (MAX_SENTENCE_WORDS + 1), MAX_SENTENCE_WORDS + 1, "line 1", "blank line"),
    ],
)
def test_a_broken_line_is_named_with_its_value_and_a_remedy(tmp_path, content, line, value, remedy):
    path = tmp_path / "test.tsv"
    path.write_bytes(content)
    with pytest.raises(TaskError) as error:
        read_ner(path)
    message = str(error.value)
    assert message.startswith(f"{path}:{line}: ")
    assert value.replace(r"\\", "\\") in message
    assert remedy in message


@pytest.mark.parametrize("content", [b"", b"\n\n", b"no\tO\nchemicals\tO\n"])
def test_a_file_without_entities_is_refused(tmp_path, content):
    path = tmp_path / "train.tsv"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=r"train\.tsv: \d sentences and no entity .*remedy"):
        read_ner(path)


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(TaskError, match=r"'BC5CDR-chemical'; did you mean BC5CDR-chem\?"):
        find_task("BC5CDR-chemical")


def test_a_missing_split_names_the_folder_and_the_remedy(tmp_path, monkeypatch):
    write(tmp_path / "train.tsv", [Sentence(("aspirin",), ("B",))])
    with pytest.raises(TaskError) as error:
        task_data(TASKS["BC5CDR-chem"], tmp_path, tmp_path)
    assert f"{tmp_path} has no dev.tsv, test.tsv; remedy: name the folder" in str(error.value)

    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(TaskError, match=r"nowhere/blurb/BC5CDR-chem has no .*; remedy: set BERT_PIPELINE_DATA"):
        task_data(TASKS["BC5CDR-chem"], None, tmp_path)


def test_another_number_of_gold_entities_is_refused(tmp_path):
    for split in ("train", "dev", "test"):
        write(tmp_path / f"{split}.tsv", [Sentence(("aspirin", "helps"), ("B", "O"))])
    with pytest.raises(TaskError, match=r"train\.tsv: 1 gold entities, but BC5CDR-chem's train has 5,203.*remedy"):
        read_task(TASKS["BC5CDR-chem"], tmp_path)


def test_the_sample_task_is_generated_and_reads_well(tmp_path):
    task = TASKS["sample-chem"]
    folder = task_data(task, None, tmp_path / "data")
    splits = read_task(task, folder)
    assert all(num_entities(sentences) > 50 for sentences in splits.values())


def test_task_inputs_are_a_function_of_the_data_files(tmp_path, monkeypatch, task_folder):
    section = EvaluationRecipe(tasks=(TaskRecipe(name="BC5CDR-chem"), TaskRecipe(name="sample-chem")))
    folder = tmp_path / "blurb" / "BC5CDR-chem"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_bytes((task_folder / f"{split}.tsv").read_bytes())
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path))
    before = task_inputs(section)
    assert list(before) == ["BC5CDR-chem", "sample-chem"]
    assert task_inputs(section) == before
    with (folder / "dev.tsv").open("a") as file:
        file.write("\nibuprofen\tB\n")
    after = task_inputs(section)
    assert after["BC5CDR-chem"] != before["BC5CDR-chem"]
    assert after["sample-chem"] == before["sample-chem"]


@pytest.mark.skipif(not REAL_DATA, reason="BERT_PIPELINE_DATA does not name the folder of real data")
def test_bc5cdr_chem_has_the_published_number_of_entities(tmp_path):
    task = TASKS["BC5CDR-chem"]
    splits = read_task(task, task_data(task, None, tmp_path))
    found = {split: (len(sentences), num_entities(sentences)) for split, sentences in splits.items()}
    assert found == {"train": (4560, 5203), "dev": (4581, 5347), "test": (4797, 5385)}
