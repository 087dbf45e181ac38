"""Continual pretraining: it begins where another training ended, whatever the numbers of its pieces were."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from bert_pipeline.data.tokenizer.build import take_tokenizer_over
from bert_pipeline.formats.initial_model import InitialModelError, assert_same_vocabulary, split_piece
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.lineage import make_stage, stage_origin
from bert_pipeline.recipe import ModelRecipe, TokenizerRecipe
from bert_pipeline.recipe_files import load_recipe
from bert_pipeline.store import artifact
from bert_pipeline.training.model.model import build_model, initial_model

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
# As google numbers them: [PAD], unused ones, then the other special tokens. Not a multiple of 64.
PIECES = [
    *("[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *"abcdefghijklmnopqrstuvwxyz0123456789.,%()-/:;=<>+[]",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *("patients", "received", "the", "drug", "dose", "of", "mg"),
]
ADDED = ["[DRUG]", "@GENE$"]
"""Added tokens behind the vocabulary; the embeddings were resized for them."""
TEXT = "Patients received the drug, 20 mg of [MASK], with [DRUG] for @GENE$."


@pytest.fixture(scope="module", params=[BertForPreTraining, BertForMaskedLM, BertModel], ids=lambda kind: kind.__name__)
def foreign(request, tmp_path_factory) -> Path:
    """A BERT from elsewhere, with the heads that its class has."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    added = {token: len(PIECES) + number for number, token in enumerate(ADDED)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    torch.manual_seed(7)
    request.param(BertConfig(vocab_size=len(PIECES) + len(ADDED), **SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def taken_over(foreign, tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    facts = take_tokenizer_over(TokenizerRecipe(), foreign, tiny["raw_corpus"].path, out)
    assert facts["vocab_size"] == len(PIECES) + len(ADDED) and facts["heldout_unk_fraction"] < 0.01
    return out


def test_the_same_text_gives_the_same_logits_under_other_numbers(foreign, taken_over):
    """Read by transformers with the model's own vocabulary, and by ours with the pieces renumbered."""
    theirs = AutoTokenizer.from_pretrained(foreign)(TEXT, "it helped", return_tensors="pt")
    ours = AutoTokenizer.from_pretrained(taken_over)(TEXT, "it helped", return_tensors="pt")
    assert not torch.equal(theirs["input_ids"], ours["input_ids"])
    pieces = read_tokenizer(taken_over).get_vocab()
    numbers = torch.tensor([pieces[piece] for piece in PIECES + ADDED])  # ours, in their order
    assert {pieces[token] for token in ADDED} < set(ours["input_ids"].flatten().tolist())
    model = initial_model(ModelRecipe(**SIZES), taken_over, 1, foreign).eval()
    fresh = build_model(ModelRecipe(**SIZES), len(PIECES + ADDED), 1)
    with torch.inference_mode():
        expected = BertModel.from_pretrained(foreign).eval()(**theirs).last_hidden_state
        torch.testing.assert_close(model.bert(**ours).last_hidden_state, expected)
        found = model(**ours)
        kind = json.loads((foreign / "config.json").read_text())["architectures"][0]
        if kind == "BertModel":
            assert torch.equal(
                model.cls.predictions.transform.dense.weight, fresh.cls.predictions.transform.dense.weight
            )
        else:
            logits = BertForMaskedLM.from_pretrained(foreign).eval()(**theirs).logits
            torch.testing.assert_close(found.prediction_logits[..., numbers], logits)
        if kind == "BertForPreTraining":
            nsp = BertForPreTraining.from_pretrained(foreign).eval()(**theirs).seq_relationship_logits
            torch.testing.assert_close(found.seq_relationship_logits, nsp)
        else:
            assert torch.equal(model.cls.seq_relationship.weight, fresh.cls.seq_relationship.weight)


def test_what_the_model_lacks_is_a_function_of_the_seed(foreign, taken_over):
    one, again, other = (initial_model(ModelRecipe(**SIZES), taken_over, s, foreign) for s in (1, 1, 2))
    assert one.config.vocab_size == 128 > len(PIECES + ADDED), "the rows that pad are fresh"
    weights = one.get_input_embeddings().weight
    assert torch.equal(weights, again.get_input_embeddings().weight)
    assert torch.equal(weights[: len(PIECES + ADDED)], other.get_input_embeddings().weight[: len(PIECES + ADDED)])
    assert not torch.equal(weights[len(PIECES + ADDED) :], other.get_input_embeddings().weight[len(PIECES + ADDED) :])
    assert one.cls.predictions.decoder.weight is weights, "tied"


@pytest.fixture(scope="module")
def extended(foreign, tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("extended")
    facts = take_tokenizer_over(TokenizerRecipe(extend=40), foreign, tiny["raw_corpus"].path, out)
    assert facts["vocab_size"] == len(PIECES) + len(ADDED) + 40 and facts["added_pieces"] == 40
    assert facts["heldout_pieces_per_word"] < 0.8 * facts["initial_heldout_pieces_per_word"]
    return out


def test_added_pieces_shorten_the_text_and_leave_the_other_ids_alone(extended, taken_over):
    before, after = (read_tokenizer(folder).get_vocab(with_added_tokens=False) for folder in (taken_over, extended))
    assert {piece: after[piece] for piece in before} == before
    assert sorted(after[piece] for piece in after.keys() - before.keys()) == [*range(len(before), len(before) + 40)]
    text = "atenolol was given daily"
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (taken_over, extended))
    assert len(other.tokenize(text)) < len(one.tokenize(text))
    assert other.decode(other(text)["input_ids"]) == one.decode(one(text)["input_ids"])


def test_the_row_of_an_added_piece_is_the_mean_of_those_it_replaces(foreign, taken_over, extended):
    plain, longer = (initial_model(ModelRecipe(**SIZES), folder, 1, foreign) for folder in (taken_over, extended))
    known, pieces = read_tokenizer(taken_over).get_vocab(), read_tokenizer(extended).get_vocab()
    assert longer.cls.predictions.decoder.weight is longer.get_input_embeddings().weight, "tied"
    for parameter in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        old, new = plain.get_parameter(parameter), longer.get_parameter(parameter)
        for piece, number in pieces.items():
            parts = [piece] if piece in known else split_piece(piece, known)
            expected = old[[known[part] for part in parts]].mean(0)
            assert torch.equal(new[number], expected) if len(parts) == 1 else torch.allclose(new[number], expected)
    encoder = dict(longer.bert.encoder.named_parameters())
    assert all(torch.equal(encoder[name], each) for name, each in plain.bert.encoder.named_parameters())


def test_datasets_of_an_extended_vocabulary_are_accepted_and_of_a_foreign_piece_not(foreign, extended, tmp_path):
    assert_same_vocabulary(foreign, extended)
    table = json.loads((extended / "tokenizer.json").read_text())
    numbers = table["model"]["vocab"]
    table["model"]["vocab"] = {"é" if number == len(PIECES) + 3 else piece: number for piece, number in numbers.items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(InitialModelError, match="1 pieces differ in their ids, such as 'é'"):
        assert_same_vocabulary(foreign, tmp_path)


BASE = """
[corpus]
source = "sample"
sample_documents = 300
heldout_fraction = 0.1
documents_per_shard = 100

{tokenizer}

[nsp]
dupe_factor = 2

[masking]
do_whole_word_mask = true

{model}

[pretrain]
{init_from}
log_every = 2
heldout_pairs = 40

[[pretrain.phases]]
max_seq_length = 64
num_steps = 6
global_batch_size = 16
learning_rate = 1e-3
warmup_steps = 2
"""
MODEL = "\n".join(["[model]", *(f"{name} = {value}" for name, value in SIZES.items())])


@pytest.fixture(scope="module")
def two_recipes(tmp_path_factory, training_in_a_fork):
    """`base` learns from nothing; `further` begins with what base has learnt."""
    root = tmp_path_factory.mktemp("continual")
    (root / "base.toml").write_text(BASE.format(tokenizer="[tokenizer]\nvocab_size = 800", model=MODEL, init_from=""))
    for name, tokenizer in (("further", ""), ("extended", "[tokenizer]\nextend = 60")):
        (root / f"{name}.toml").write_text(BASE.format(tokenizer=tokenizer, model="", init_from='init_from = "base"'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERT_PIPELINE_RECIPES", str(root))
        patch.setenv("BERT_PIPELINE_HOME", str(root / "home"))
        yield {name: load_recipe(root / f"{name}.toml") for name in ("base", "further", "extended")}


KINDS = ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset", "pretrained_checkpoint")


def build(recipe, home: Path) -> dict:
    made: dict = {}
    for kind in KINDS:
        fingerprint = artifact.fingerprint(stage_origin(kind, recipe, made))
        made[kind] = make_stage(kind, recipe, made, home / "artifacts" / kind / fingerprint)
    return made


@pytest.fixture(scope="module")
def base(two_recipes):
    return build(two_recipes["base"], Path(os.environ["BERT_PIPELINE_HOME"]))


def test_a_run_begins_where_the_other_ended(two_recipes, base, tmp_path):
    """Same text, same vocabulary, same masks: the first measurement is the last one of the recipe before."""
    made: dict = {}
    for kind in KINDS:
        made[kind] = make_stage(kind, two_recipes["further"], made, tmp_path / kind)
    before, further = base["pretrained_checkpoint"], made["pretrained_checkpoint"]
    assert further.facts["heldout_before"] == pytest.approx(before.facts["heldout_after"], rel=1e-6)
    assert further.facts["heldout_after"]["mlm_loss"] < further.facts["heldout_before"]["mlm_loss"]
    inputs = {kind: one.record["origin"]["inputs"] for kind, one in made.items()}
    assert inputs["pretrained_checkpoint"]["initial_model"] == before.fingerprint
    assert inputs["tokenizer"].keys() == {"raw_corpus", "initial_vocabulary"}
    for name in ("tokenizer.json", "vocab.txt"):
        assert (further.path / name).read_bytes() == (before.path / name).read_bytes()
    assert further.record["origin"]["section"]["model"]["hidden_size"] == SIZES["hidden_size"]
    card = (further.path / "README.md").read_text()
    assert "begun with the weights and the vocabulary of base and trained" in card and "from scratch" not in card


def test_an_extended_vocabulary_is_trained_and_exported(two_recipes, base, tmp_path):
    recipe = two_recipes["extended"]
    made = build(recipe, tmp_path)
    checkpoint = made["pretrained_checkpoint"]
    assert made["tokenizer"].facts["vocab_size"] == 860
    assert checkpoint.facts["heldout_after"]["mlm_loss"] < checkpoint.facts["heldout_before"]["mlm_loss"]
    assert checkpoint.facts["max_logit_difference"] < 1e-4
    model, tokenizer = (
        BertForPreTraining.from_pretrained(checkpoint.path),
        AutoTokenizer.from_pretrained(checkpoint.path),
    )
    assert model.config.vocab_size == 896 and len(tokenizer) == 860
    again = initial_model(ModelRecipe(**SIZES), made["tokenizer"].path, 12345, base["pretrained_checkpoint"].path)
    other = initial_model(ModelRecipe(**SIZES), made["tokenizer"].path, 1, base["pretrained_checkpoint"].path)
    assert torch.equal(again.get_input_embeddings().weight[:860], other.get_input_embeddings().weight[:860])


def test_datasets_of_another_vocabulary_are_refused(two_recipes, base, tmp_path):
    smaller = two_recipes["base"].tokenizer.model_copy(update={"vocab_size": 700})
    learnt = two_recipes["base"].model_copy(update={"tokenizer": smaller})
    made = {"raw_corpus": base["raw_corpus"]}
    for kind in KINDS[1:4]:
        made[kind] = make_stage(kind, learnt, made, tmp_path / kind)
    with pytest.raises(InitialModelError) as error:
        make_stage("pretrained_checkpoint", two_recipes["further"], made, tmp_path / "out")
    told = str(error.value)
    assert f"built with {tmp_path / 'tokenizer'} (700 pieces" in told
    assert f"{base['pretrained_checkpoint'].path} has 800 pieces" in told and "remedy: build tokenizer" in told
    assert not (tmp_path / "out.partial" / "work").exists(), "before any device time"
