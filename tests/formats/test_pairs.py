import datasets
import numpy as np
import pytest
from transformers import BertForPreTraining, Trainer, TrainingArguments

from bert_pipeline.formats.pairs import (
    IGNORE_INDEX,
    MaskShard,
    PairShard,
    hugging_face_dataset,
    pass_directory,
)
from bert_pipeline.formats.tables import shard_paths
from bert_pipeline.formats.tokenizer import CLS_ID, MASK_ID, SEP_ID, read_tokenizer
from bert_pipeline.training.model.model import build_model


@pytest.fixture(scope="module")
def view(tiny):
    return hugging_face_dataset(tiny["nsp_dataset"].path, tiny["masked_dataset"].path, 64)


def test_the_hugging_face_view_has_the_standard_columns(view, tiny):
    second = hugging_face_dataset(tiny["nsp_dataset"].path, tiny["masked_dataset"].path, 64, number=1)
    assert len(view) + len(second) == tiny["nsp_dataset"].facts["len_64"]["train_pairs"]
    row = view[0]
    lengths = {name: len(column) for name, column in row.items() if name != "next_sentence_label"}
    names = ("input_ids", "token_type_ids", "position_ids", "attention_mask", "labels")
    assert lengths == dict.fromkeys(names, 64)
    used = sum(row["attention_mask"])
    assert row["input_ids"][0] == CLS_ID and row["next_sentence_label"] in (0, 1)
    assert list(row["position_ids"]) == list(range(64))
    first_separator = list(row["token_type_ids"]).index(1) - 1
    assert row["input_ids"][first_separator] == SEP_ID
    assert set(row["token_type_ids"][first_separator + 1 : used]) == {1}
    assert set(row["labels"][used:]) <= {IGNORE_INDEX} and set(row["attention_mask"][used:]) <= {0}


def test_labels_are_the_originals_of_the_masked_positions(view, tiny):
    path = shard_paths(pass_directory(tiny["nsp_dataset"].path, 64, "train"), "arrow")[0]
    pairs = PairShard.read(path)
    masks = MaskShard.read(tiny["masked_dataset"].path / path.relative_to(tiny["nsp_dataset"].path))
    for n in range(20):
        row = view[n]
        original = pairs.input_ids[pairs.offsets[n] : pairs.offsets[n + 1]]
        places = masks.positions[masks.offsets[n] : masks.offsets[n + 1]]
        labels = np.asarray(row["labels"])
        assert np.flatnonzero(labels != IGNORE_INDEX).tolist() == places.tolist()
        assert (labels[places] == original[places]).all()
        restored = np.asarray(row["input_ids"])[: len(original)].copy()
        restored[places] = labels[places]
        assert (restored == original).all()


def test_a_stock_trainer_trains_on_it(view, tiny, tiny_recipe, tmp_path):
    model: BertForPreTraining = build_model(tiny_recipe.model, tiny["tokenizer"].facts["vocab_size"], seed=1)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=10, per_device_train_batch_size=8, learning_rate=1e-3, logging_steps=1,
        report_to=[], remove_unused_columns=False, use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=view)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 10 and np.isfinite(losses).all() and losses[-1] < losses[0]


def test_datasets_loads_a_shard_without_our_code(tiny):
    path = shard_paths(pass_directory(tiny["nsp_dataset"].path, 32, "train"), "arrow")[0]
    loaded = datasets.Dataset.from_file(str(path))
    assert set(loaded.column_names) == {"input_ids", "segment_a_length", "next_sentence_label"}
    assert loaded.features["input_ids"].feature.dtype == "uint16"


def test_masks_take_less_than_one_byte_per_token(tiny):
    def size(artifact):
        return sum(path.stat().st_size for path in artifact.path.rglob("len-64/train/*/*.arrow"))

    tokens = tiny["nsp_dataset"].facts["len_64"]["train_tokens"]
    assert size(tiny["masked_dataset"]) < tokens
    assert size(tiny["nsp_dataset"]) < 2.4 * tokens


def test_a_special_token_in_a_text_is_encoded_as_text(tiny):
    tokenizer = read_tokenizer(tiny["tokenizer"].path)
    ids = tokenizer.encode("a [SEP] b [MASK]", add_special_tokens=False).ids
    assert not set(ids) & {SEP_ID, MASK_ID}


def test_the_error_for_an_empty_folder_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no shard-\*\.arrow"):
        shard_paths(tmp_path, "arrow")
