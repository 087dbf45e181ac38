"""Reading tokenizer.json: files written by the tokenizer stage, and malformed files."""

import json
from copy import deepcopy

import pytest

from bert_pipeline.data.tokenizer.build import train_wordpiece
from bert_pipeline.formats.tokenizer import continuation_pieces, read_tokenizer, token_id_type
from bert_pipeline.recipe import TokenizerRecipe

TEXT = [
    "Interleukin-2 (IL-2) raised β-catenin by 12.5 µg/ml; p < 0.05.",
    "Müller cells, naïve patients and 5-HT1A/2B receptors.",
    "No harm [SEP] was seen [MASK] in mice.",
] * 3


@pytest.fixture(scope="module")
def trained():
    return train_wordpiece(TokenizerRecipe(vocab_size=130), TEXT)


@pytest.fixture(scope="module")
def content(trained):
    return json.loads(trained.to_str())


def test_the_tokenizer_read_encodes_like_the_one_trained(trained, tmp_path):
    trained.save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer(tmp_path)
    assert read.get_vocab() == trained.get_vocab()
    trained.encode_special_tokens = True
    for text in [*TEXT, "Ünïcode ÅÅ 中文", "", "x" * 150]:
        assert (
            read.encode(text, add_special_tokens=False).tokens == trained.encode(text, add_special_tokens=False).tokens
        )
        ids = read.encode(text).ids
        assert read.decode(ids, skip_special_tokens=False) == trained.decode(ids, skip_special_tokens=False)
    assert sum(continuation_pieces(read)) == sum(piece.startswith("##") for piece in read.get_vocab())


def changed(*path_and_value):
    *path, value = path_and_value

    def change(content):
        at = content
        for key in path[:-1]:
            at = at[key]
        if value is None:
            at.pop(path[-1], None)
        else:
            at[path[-1]] = value

    return change


FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


def added_at(number):
    return lambda content: content["added_tokens"].append({"id": number, "content": "[DRUG]"} | FLAGS)


HOSTILE = {
    "a gap in the ids": (changed("model", "vocab", "zebra", 5_000), "model: .*id 5000 of 'zebra'"),
    "an id twice": (changed("model", "vocab", "zebra", 7), "model: .*id 7 of"),
    "an id of 2**31": (changed("model", "vocab", "zebra", 2**31), "model: .*id 2147483648"),
    "a negative id": (changed("model", "vocab", "zebra", -1), "model.vocab.zebra: .*greater than or equal to 0"),
    "an id that is text": (changed("model", "vocab", "zebra", "9"), "model.vocab.zebra: .*valid integer"),
    "no [UNK]": (lambda c: swap(c, "[UNK]", "unk"), r"model: .*must be 0 to 4, but: {'\[UNK\]': None}"),
    "no [MASK]": (lambda c: swap(c, "[MASK]", "mask"), r"model: .*must be 0 to 4, but: {'\[MASK\]': None}"),
    "[CLS] elsewhere": (lambda c: exchange(c, "[CLS]", "##s"), r"model: .*'\[CLS\]': \d+"),
    "another model": (changed("model", "type", "BPE"), "model.type: .*'WordPiece'"),
    "no model": (changed("model", None), "model: Field required"),
    "another prefix": (changed("model", "continuing_subword_prefix", ""), "model.continuing_subword_prefix"),
    "words without end": (changed("model", "max_input_chars_per_word", 2**40), "model.max_input_chars_per_word"),
    "a regex for a splitter": (
        changed("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}),
        "pre_tokenizer.type",
    ),
    "a sequence of normalisers": (changed("normalizer", {"type": "Sequence", "normalizers": []}), "normalizer.type"),
    "no normaliser": (changed("normalizer", None), "normalizer: Field required"),
    "no list of added tokens": (changed("added_tokens", {}), "added_tokens: .*valid list"),
    "an added token without flags": (changed("added_tokens", [{"id": 140}]), "added_tokens.0.content"),
    "an added token far away": (
        added_at(2**40),
        "the file: .*id 1099",
    ),
    "an added token in a place taken": (
        added_at(7),
        "the file: .*id 7 of",
    ),
    "a list": (None, "the file: Input should be a valid dictionary"),
}


def swap(content, old, new):
    content["model"]["vocab"][new] = content["model"]["vocab"].pop(old)


def exchange(content, one, other):
    vocab = content["model"]["vocab"]
    vocab[one], vocab[other] = vocab[other], vocab[one]


@pytest.mark.parametrize("fault", HOSTILE)
def test_the_error_for_a_malformed_file_names_the_wrong_field(content, tmp_path, fault):
    change, message = HOSTILE[fault]
    hostile = deepcopy(content)
    if change:
        change(hostile)
    else:
        hostile = [hostile]
    (tmp_path / "tokenizer.json").write_text(json.dumps(hostile))
    with pytest.raises(ValueError, match=rf"tokenizer\.json: {message}.*remedy"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not JSON"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("part", ["post_processor", "decoder", "truncation", "padding"])
def test_fields_that_encoding_does_not_need_are_ignored(content, trained, tmp_path, part):
    hostile = content | {part: {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}], "n": 2**70}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(hostile))
    assert read_tokenizer(tmp_path).get_vocab() == trained.get_vocab()


def test_large_vocabularies_get_32_bit_ids():
    assert token_id_type(65_536).bit_width == 16
    assert token_id_type(65_537).bit_width == 32
