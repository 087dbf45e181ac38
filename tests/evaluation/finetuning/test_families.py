"""Models of other families than BERT: small random ones, with the files that their authors publish."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertTokenizer,
    ElectraConfig,
    ElectraTokenizer,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
)

from bert_pipeline.evaluation.evaluate import evaluate_task
from bert_pipeline.evaluation.finetuning.engine import TaskModel, usual_computation
from bert_pipeline.evaluation.finetuning.finetune import predict
from bert_pipeline.evaluation.finetuning.heads import build_task_model
from bert_pipeline.evaluation.finetuning.inputs import encode_task
from bert_pipeline.evaluation.finetuning.protocol import max_positions
from bert_pipeline.evaluation.tasks.readers import Sentence, TaskData
from bert_pipeline.evaluation.tasks.task import TaskError
from bert_pipeline.formats.weights import WeightsError
from bert_pipeline.recipe import TaskRecipe

from ..conftest import PLAIN, RELATIONS

WORDS = [*PLAIN, *RELATIONS, "metoprolol", "atenolol", "The", "don't", "β-blocker", "12.5", "(see", "über", "-"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def byte_level(specials: list[str], splitter=None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS), *WORDS] * 3, trainer)
    return tokenizer


def roberta(folder):
    trained = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    model = json.loads(trained.to_str())["model"]
    tokenizer = RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    tokenizer.save_pretrained(folder)
    return RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, type_vocab_size=1, **SIZES)


def modernbert(folder, splitter=None):
    trained = byte_level(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], splitter)
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("UNK", "CLS", "SEP", "PAD", "MASK")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, **names)
    tokenizer.save_pretrained(folder)
    special = {"pad_token_id": 3, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    return ModernBertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **special, **SIZES)


def modernbert_that_splits_digits(folder):
    byte_level_last = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(False)])
    return modernbert(folder, byte_level_last)


def word_pieces():
    letters = sorted(set("".join(WORDS).lower()))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *(w.lower() for w in WORDS)]))}


def distilbert(folder):
    DistilBertTokenizer(word_pieces()).save_pretrained(folder)
    return DistilBertConfig(vocab_size=len(word_pieces()), max_position_embeddings=64, dim=32, n_layers=2, n_heads=2,
                            hidden_dim=64)  # fmt: skip


def electra(folder):
    ElectraTokenizer(word_pieces()).save_pretrained(folder)
    return ElectraConfig(vocab_size=len(word_pieces()), max_position_embeddings=64, embedding_size=16, **SIZES)


FAMILIES = {
    "roberta": roberta,
    "modernbert": modernbert,
    "modernbert-digits": modernbert_that_splits_digits,
    "distilbert": distilbert,
    "electra": electra,
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)
    AutoModelForMaskedLM.from_config(FAMILIES[request.param](folder)).save_pretrained(folder)
    return folder


def test_the_longest_input_is_known_before_the_run(family, small_task):
    """Positions of RoBERTa start after the id of its padding: 66 rows are 64 positions."""
    assert max_positions(family) == 64
    task, _ = small_task("small-relation")
    with pytest.raises(TaskError, match=r"max_seq_length is 65, but the model has 64 positions; remedy"):
        evaluate_task(TaskRecipe(name=task.name, max_seq_length=65), family, None, family / "out", print, False)
    model = AutoModel.from_pretrained(family).eval()
    longest = AutoTokenizer.from_pretrained(family)("pain " * 100, truncation=True, max_length=64, return_tensors="pt")
    assert model(**longest).last_hidden_state.shape == (1, 64, 32)


def test_words_are_cut_as_in_running_text(family, small_task):
    task, _ = small_task("small-ner")
    sentence = Sentence("1", tuple(WORDS), ("O",) * len(WORDS))
    [each] = encode_task(family, task, TaskData({"train": [sentence]}, {}), 64).splits["train"]
    theirs = AutoTokenizer.from_pretrained(family, add_prefix_space=True)
    running = AutoTokenizer.from_pretrained(family)(" " + " ".join(WORDS), truncation=True, max_length=64)["input_ids"]
    assert each.input_ids.tolist() == running
    if "modernbert" not in family.name:  # its tokenizer ignores add_prefix_space
        pretokenized = theirs(WORDS, is_split_into_words=True, truncation=True, max_length=64)["input_ids"]
        assert each.input_ids.tolist() == pretokenized
    pieces = theirs.convert_ids_to_tokens(each.input_ids[each.first_pieces].tolist())
    if "##a" not in theirs.get_vocab():
        assert all(piece.startswith("Ġ") for piece in pieces)


@pytest.mark.parametrize("kind", ["ner", "pico", "relation", "similarity", "documents", "qa"])
def test_every_kind_of_task_learns_and_predicts(family, small_task, kind):
    task, data = small_task(f"small-{kind}")
    inputs = encode_task(family, task, data, 64)
    batch = inputs.learnable[:4]
    torch.manual_seed(1)
    model, _ = build_task_model(family, "pretrained", task)
    wrapped = TaskModel(model, task, inputs.pad_id, usual_computation(model.config, torch.device("cpu")))
    loss = wrapped.loss(batch)
    loss.backward()
    assert np.isfinite(loss.item())
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert len(predict(wrapped, batch)) == 4
    base = AutoModel.from_pretrained(family)
    for name, weight in base.named_parameters():
        if "pooler" not in name:
            assert torch.equal(weight, model.base_model.get_parameter(name)), name


def test_weights_in_a_pickle_are_refused_first(family, small_task, tmp_path):
    task, _ = small_task("small-relation")
    for path in family.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(AutoModel.from_pretrained(family).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"(?s)weights in pytorch_model\.bin.*remedy: convert it"):
        evaluate_task(TaskRecipe(name=task.name), tmp_path, None, tmp_path / "out", print, False)
    assert not (tmp_path / "out").exists()
