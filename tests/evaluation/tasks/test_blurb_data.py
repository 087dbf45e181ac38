"""The benchmark's own files, where available: each has the size and the sha256 that its task states."""

import os
from pathlib import Path

import pytest

from bert_pipeline.core.files import cached_digest
from bert_pipeline.evaluation.tasks.readers import Sentence, read_split, read_task, size
from bert_pipeline.evaluation.tasks.task import SPLITS, find_task, split_files, task_folder

REAL_DATA = os.environ.get("BERT_PIPELINE_DATA")
pytestmark = pytest.mark.skipif(not REAL_DATA, reason="BERT_PIPELINE_DATA does not name the folder of real data")

# Examples in train, dev and test: sentences, pairs, documents, questions.
EXAMPLES = {
    "BC5CDR-chem": (4560, 4581, 4797),
    "BC5CDR-disease": (4560, 4581, 4797),
    "NCBI-disease": (5424, 923, 940),
    "BC2GM": (12574, 2519, 5038),
    "JNLPBA": (16807, 1739, 3856),
    "EBM-PICO": (None, 10386, 2076),
    "ChemProt": (None, 11268, None),
    "DDI": (25296, 2496, 5716),
    "GAD": (4261, 535, 534),
    "BIOSSES": (64, 16, 20),
    "HoC": (1295, 186, 371),
    "PubMedQA": (450, 50, 500),
    "BioASQ": (670, 75, 140),
}


def file_of(name: str, split: str) -> Path:
    task = find_task(name)
    path = split_files(task, task_folder(task, None, Path()))[split]
    if not path.is_file():
        pytest.skip(f"{path} is not available")
    return path


@pytest.mark.parametrize(
    ("name", "split", "num_examples"),
    [
        (name, split, count)
        for name, counts in EXAMPLES.items()
        for split, count in zip(SPLITS, counts, strict=True)
        if count is not None
    ],
)
def test_a_split_has_the_size_and_hash_that_its_task_states(name, split, num_examples):
    task, path = find_task(name), file_of(name, split)
    stated = getattr(task.splits, split)
    examples = read_split(task, path)
    assert (len(examples), size(task, examples)) == (num_examples, stated.size)
    assert cached_digest(path) == stated.sha256 or (not stated.sha256 and (name, split) == ("DDI", "train"))
    assert len({example.id for example in examples}) == num_examples


def test_sentences_that_are_also_in_train_are_counted(tmp_path):
    for split in SPLITS:
        file_of("BC5CDR-chem", split)
    task = find_task("BC5CDR-chem")
    data = read_task(task, task_folder(task, None, tmp_path))
    assert {split: data.files[split]["also_in_train"] for split in ("dev", "test")} == {"dev": 19, "test": 16}


def test_documents_of_ebm_pico_are_named():
    examples = read_split(find_task("EBM-PICO"), file_of("EBM-PICO", "test"))
    assert len({example.id.rpartition(":")[0] for example in examples}) == 191
    assert isinstance(examples[0], Sentence) and not examples[0].tokens[0].startswith("-DOCSTART-")


def test_labels_are_distributed_as_in_the_corpora():
    """The order of HoC's flags: by the corpus's paper (Baker et al. 2016), the rarest is cellular energetics and the
    most frequent sustaining proliferative signaling; and only one of DDI's pairs has no type."""
    documents = read_split(find_task("HoC"), file_of("HoC", "train"))
    counts = {label: sum(label in text.label for text in documents) for label in find_task("HoC").labels}
    assert max(counts, key=counts.__getitem__) == "sustaining proliferative signaling"
    assert min(counts, key=counts.__getitem__) == "cellular energetics"
    about_vessels = [text.label for text in documents if "angiogen" in text.parts[0].lower()]
    assert sum("inducing angiogenesis" in labels for labels in about_vessels) > len(about_vessels) / 2
    pairs = read_split(find_task("DDI"), file_of("DDI", "train"))
    assert sum(pair.label == "DDI-false" for pair in pairs) == 21745
