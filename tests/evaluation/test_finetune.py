import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from bert_pipeline.evaluation.finetune import (
    TAGS,
    encode_task,
    epoch_batches,
    finetune_ner,
    tag,
    token_classifier,
)
from bert_pipeline.evaluation.scores import entity_scores
from bert_pipeline.evaluation.tasks import SPLITS, Sentence, read_ner
from bert_pipeline.progress import Progress
from bert_pipeline.recipe import TaskRecipe

SETTINGS = TaskRecipe(name="chem", learning_rate=3e-3, batch_size=16, num_epochs=10, max_seq_length=64)


@pytest.fixture(scope="module")
def sentences(task_folder):
    return {split: read_ner(task_folder / f"{split}.tsv") for split in SPLITS}


@pytest.fixture(scope="module")
def examples(model_dir, sentences):
    return encode_task(model_dir, sentences, SETTINGS.max_seq_length)


def run(model_dir, examples, encoder="pretrained", seed=1, settings=SETTINGS):
    return finetune_ner(model_dir, encoder, examples, settings, seed, Progress("test", None, "steps"))


def encode_one(model_dir, tokens, tags, max_seq_length=64):
    [example] = encode_task(model_dir, {"test": [Sentence(tuple(tokens), tuple(tags))]}, max_seq_length).splits["test"]
    return example


def first_pieces(model_dir, example):
    pieces = AutoTokenizer.from_pretrained(model_dir).convert_ids_to_tokens(example.input_ids)
    return [pieces[position] for position in example.first_pieces]


def test_the_label_sits_on_the_first_piece_of_a_word(model_dir):
    example = encode_one(model_dir, ["pain", "metoprolol", "(tartrate)", "."], "OBIO")
    assert example.words == [0, 1, 2, 3]
    pieces = first_pieces(model_dir, example)
    assert (pieces[0], pieces[2], pieces[3]) == ("pain", "(", ".")
    assert "metoprolol".startswith(pieces[1])
    assert example.input_ids[0] != example.input_ids[example.first_pieces[0]], "[CLS] bears no label"


def test_a_word_without_pieces_shifts_no_label(model_dir):
    example = encode_one(model_dir, ["\x07", "pain", "\u200b\u200d", "atenolol", "\x00"], "OOOBO")
    assert example.words == [1, 3]
    assert first_pieces(model_dir, example)[0] == "pain"


def test_entities_beyond_the_models_input_count_as_missed(model_dir, examples, sentences):
    """The gold of a cut sentence stays whole, so cutting can only lower recall."""
    model = token_classifier(model_dir, "pretrained")
    gold = [sentence.tags for sentence in sentences["test"]]
    cut = encode_task(model_dir, sentences, max_seq_length=8).splits["test"]
    assert any(len(example.words) < len(example.tags) for example in cut)
    says_b = {"classifier.weight": torch.zeros(3, 32), "classifier.bias": torch.tensor([0.0, 1.0, 0.0])}
    model.load_state_dict(says_b, strict=False)
    predicted = tag(model, cut, examples.pad_id)
    for example, tags in zip(cut, predicted, strict=True):
        seen = set(example.words)
        assert tags == ["B" if n in seen else "O" for n in range(len(example.tags))]
    # Every word it sees is an entity of one word, so these are the ones it finds.
    found = sum(row.tags[n] == "B" and (*row.tags, "O")[n + 1] != "I" for row in cut for n in row.words)
    assert entity_scores(gold, predicted)["recall"] == pytest.approx(found / sum(tags.count("B") for tags in gold))


@given(
    lengths=st.lists(st.integers(1, 100), max_size=300),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 99),
)
def test_an_epoch_has_every_example_once(lengths, batch_size, seed, epoch):
    batches = epoch_batches(lengths, batch_size, seed, epoch)
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for batch in batches)
    again = epoch_batches(lengths, batch_size, seed, epoch)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


def test_batches_are_of_like_length_and_differ_between_epochs_and_seeds():
    lengths = np.random.default_rng(0).integers(3, 120, size=1_000).tolist()
    epochs = {(s, e): epoch_batches(lengths, 32, s, e) for s, e in [(1, 0), (1, 1), (2, 0)]}
    orders = {key: tuple(np.concatenate(batches)) for key, batches in epochs.items()}
    assert len(set(orders.values())) == 3
    padded = sum(len(batch) * max(lengths[n] for n in batch) for batch in epochs[1, 0])
    assert padded < 1.1 * sum(lengths)


def test_tags_do_not_depend_on_the_batch_a_sentence_is_in(model_dir, examples):
    torch.manual_seed(3)
    model = token_classifier(model_dir, "pretrained")
    together = tag(model, examples.splits["test"], examples.pad_id)
    one_by_one = tag(model, examples.splits["test"], examples.pad_id, batch_size=1)
    assert together == one_by_one
    assert {t for tags in together for t in tags} > {"O"}, "a model that says only O would show nothing"


def test_fine_tuning_learns_and_the_same_seed_gives_the_same_tags(model_dir, examples, sentences):
    first, again, other = (run(model_dir, examples, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.last_epoch_loss != other.last_epoch_loss
    for split, predicted in {"dev": first.dev_tags, "test": first.test_tags}.items():
        scores = entity_scores([sentence.tags for sentence in sentences[split]], predicted)
        assert scores["f1"] > 0.9


def test_random_init_differs_from_pretrained_in_the_weights_alone(model_dir):
    stored = load_file(model_dir / "model.safetensors")
    models = {}
    for encoder in ("pretrained", "random_init"):
        torch.manual_seed(1)
        models[encoder] = token_classifier(model_dir, encoder)
    pretrained, random_init = (models[name].state_dict() for name in ("pretrained", "random_init"))
    unlike = {"architectures", "dtype", "_name_or_path"}  # where the config came from, not what it says
    configs = [
        {key: value for key, value in model.config.to_dict().items() if key not in unlike} for model in models.values()
    ]
    assert configs[0] == configs[1]
    assert {name: value.shape for name, value in pretrained.items()} == {
        name: value.shape for name, value in random_init.items()
    }
    encoder_weights = [name for name in pretrained if name.startswith("bert.") and value_is_random(stored[name])]
    assert len(encoder_weights) > 10
    for name in encoder_weights:
        assert torch.equal(pretrained[name], stored[name])
        assert not torch.equal(random_init[name], stored[name])
    torch.manual_seed(1)
    assert all(
        torch.equal(value, random_init[name])
        for name, value in token_classifier(model_dir, "random_init").state_dict().items()
    )


def value_is_random(tensor):
    return tensor.unique().numel() > 1  # not a bias of zeros, nor a LayerNorm's ones


def test_labels_are_read_back_from_the_models_own_table(model_dir):
    assert token_classifier(model_dir, "pretrained").config.id2label == dict(enumerate(TAGS))


def test_sentences_that_are_nothing_to_the_tokenizer_are_tagged_but_not_learned(model_dir):
    nothing = Sentence(("\x07",), ("O",))
    drug = Sentence(("atenolol", "helps"), ("B", "O"))
    examples = encode_task(model_dir, {"train": [nothing, drug], "dev": [drug], "test": [nothing, drug]}, 16)
    settings = TaskRecipe(name="chem", batch_size=1, num_epochs=1, max_seq_length=16)
    assert examples.num_steps(settings) == 1
    tagged = run(model_dir, examples, settings=settings)
    assert tagged.test_tags[0] == ["O"]
    assert len(tagged.test_tags[1]) == 2


def test_a_checkpoint_of_another_head_is_taken(model_dir, examples, tmp_path):
    """A plain encoder with prefixless names, as sentence encoders are stored."""
    stored = load_file(model_dir / "model.safetensors")
    shutil.copytree(model_dir, tmp_path / "plain")
    plain = {name.removeprefix("bert."): value for name, value in stored.items() if name.startswith("bert.")}
    save_file(plain, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(1)
    model = token_classifier(tmp_path / "plain", "pretrained")
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(model.state_dict()[name], stored[name])


def test_weights_of_another_architecture_are_refused(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "short")
    config = BertConfig.from_pretrained(model_dir)
    config.num_hidden_layers = 1
    BertForMaskedLM(config).save_pretrained(tmp_path / "weights")
    shutil.copy(tmp_path / "weights" / "model.safetensors", tmp_path / "short")
    with pytest.raises(ValueError, match=r"short: its weights lack 16 of .*bert\.encoder\.layer\.1\..*remedy"):
        token_classifier(tmp_path / "short", "pretrained")


def test_a_length_beyond_the_models_positions_is_refused(model_dir, sentences):
    with pytest.raises(ValueError, match=r"max_seq_length is 65, but .* has 64 positions; remedy"):
        encode_task(model_dir, sentences, max_seq_length=65)


def test_a_tokenizer_of_another_model_is_refused(model_dir, sentences, tmp_path):
    shutil.copytree(model_dir, tmp_path / "mixed")
    config = BertConfig.from_pretrained(model_dir)
    config.vocab_size = 50
    config.save_pretrained(tmp_path / "mixed")
    with pytest.raises(ValueError, match="mixed: the tokenizer has 90 pieces, the model 50; remedy"):
        encode_task(tmp_path / "mixed", sentences, max_seq_length=64)


def test_a_folder_without_a_model_is_refused(tmp_path, sentences):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; remedy"):
        encode_task(tmp_path, sentences, max_seq_length=64)


def test_a_run_that_diverges_is_an_error_and_no_score(model_dir, examples):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e38, "num_epochs": 1})
    with pytest.raises(FloatingPointError, match="chem, pretrained, seed 1: the training loss is nan; remedy"):
        run(model_dir, examples, settings=settings)
