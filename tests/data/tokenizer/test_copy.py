"""The copy of a model's tokenizer gives the ids of the model's own AutoTokenizer, renumbered."""

import json
from itertools import product

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer, BertTokenizer

from bert_pipeline.data.tokenizer.build import copy_tokenizer, save_tokenizer
from bert_pipeline.data.tokenizer.encoding import Encoder
from bert_pipeline.formats.initial_model import assert_same_vocabulary, read_vocabulary, vocabulary_fingerprint
from bert_pipeline.formats.tokenizer import SPECIAL_TOKENS, read_tokenizer

SINGLE = "abcdefghijklmnopqrstuvwxyzABÉéïİıßſ0129.,$@[]()#%-'“α가두통환자痛頭カガがับक़กา́\u0308"
PIECES = [
    *(
        "[PAD]",
        "[unused0]",
        "[unused1]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "drug",
        "dru",
        "gene",
        "é",
        "cafe",
        "café",
    ),
    *("두통", "환자", "##는", "##을", "頭痛", "##痛"),
    *dict.fromkeys([*SINGLE, *(f"##{letter}" for letter in SINGLE)]),
]
PIECES = list(dict.fromkeys(PIECES))
ADDED = [
    AddedToken("@GENE$"),
    AddedToken("[DRUG]", normalized=False, special=True),
    AddedToken("[unused1]", normalized=False, special=True),
    AddedToken("naïve drug", normalized=True),
    AddedToken("drug", single_word=True, normalized=False),
    AddedToken("<e>", lstrip=True, rstrip=True, normalized=False),
    AddedToken("頭痛", normalized=True),
    AddedToken("##gene", normalized=True),
]
TEXTS = [
    "환자는 두통을 호소하였다.",
    "Naïve DRUG, naïve drug; naive drug drugs xdrug.",
    "the @gene$ x@GENE$y @GE\x00NE$ [DRUG] [drug] [DRUG][DRUG] a <e>  b",
    "頭痛が痛い。カガ がクラブ ガ",
    "İstanbul Straße ﬁne café cafe\u0301 CAFÉ\u00a0\u200b\ufeff",
    "ปวดศีรษะ क़ \U0001f600 ##gene a##gene [unused1] drug\tgene\r\n",
    "",
]
LAYOUTS = ("tokenizer.json", "vocab.txt", "legacy", "both", "any class")


def write(folder, layout, lowercase, strip_accents, chinese, added):
    folder.mkdir()
    stated = {"do_lower_case": lowercase, "strip_accents": strip_accents, "tokenize_chinese_chars": chinese}
    model = BertTokenizer({piece: number for number, piece in enumerate(PIECES)}, **stated)
    model.add_tokens(added)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 256}))
    if layout in ("tokenizer.json", "both"):
        model.save_pretrained(folder)
    if layout == "any class":  # AutoTokenizer then takes every setting from tokenizer.json
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **dict(zip(names, SPECIAL_TOKENS, strict=True))}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        model.backend_tokenizer.save(str(folder / "tokenizer.json"))
    elif layout != "tokenizer.json":
        pieces = PIECES if layout != "both" else [*PIECES, "left", "over"]
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    if layout in ("vocab.txt", "legacy"):
        config = {name: value for name, value in stated.items() if value is not None}
        if layout == "vocab.txt":
            flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
            config["added_tokens_decoder"] = {
                str(number): {flag: getattr(token, flag) for flag in flags}
                for number, token in model.added_tokens_decoder.items()
            }
        else:
            appended = {token: number for token, number in model.get_added_vocab().items() if token not in PIECES}
            (folder / "added_tokens.json").write_text(json.dumps(appended))
            names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
            special: dict = dict(zip(names, SPECIAL_TOKENS, strict=True))
            if added:
                special["additional_special_tokens"] = ["[DRUG]"]
            (folder / "special_tokens_map.json").write_text(json.dumps(special))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


class Copies(list):
    def __repr__(self) -> str:  # hypothesis prints it
        return "copies"


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """(name, the model's own tokenizer, our encoder, AutoTokenizer of our artifact, our ids by theirs)."""
    root = tmp_path_factory.mktemp("copies")
    made, fingerprints = Copies(), {}
    for number, case in enumerate(product(LAYOUTS, (True, False), (None, True, False), (True, False), ([], ADDED))):
        layout, lowercase, strips, chinese, added = case
        folder, out = root / f"{number}", root / f"{number}-copy"
        write(folder, layout, lowercase, strips, chinese, added)
        out.mkdir()
        save_tokenizer(copy_tokenizer(read_vocabulary(folder)), out)
        assert_same_vocabulary(folder, out)
        theirs, ours = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(out)
        pieces = read_tokenizer(out).get_vocab()
        assert pieces.keys() == theirs.get_vocab().keys() and len(pieces) == len(PIECES) + 5 * bool(added)
        numbers = {theirs_id: pieces[piece] for piece, theirs_id in theirs.get_vocab().items()}
        made.append((str(case), theirs, Encoder(read_tokenizer(out)), ours, numbers))
        if layout != "legacy":  # it cannot state the flags of an added token
            key = lowercase, lowercase if strips is None else strips, chinese, bool(added)
            assert fingerprints.setdefault(key, vocabulary_fingerprint(folder)) == vocabulary_fingerprint(folder)
    assert len(set(fingerprints.values())) == len(fingerprints) == 16
    return made


def compare(copies, texts):
    for name, theirs, encoder, ours, numbers in copies:
        ids, offsets = encoder.encode(pa.array(texts, pa.string()))
        expected = theirs(texts, add_special_tokens=False)["input_ids"]
        again = ours(texts, add_special_tokens=False)["input_ids"]
        for n, text in enumerate(texts):
            right = [numbers[number] for number in expected[n]]
            assert ids[offsets[n] : offsets[n + 1]].tolist() == right, (name, text)
            assert again[n] == right, (name, text)


def test_texts_in_many_scripts(copies):
    compare(copies, TEXTS)


words = st.one_of(
    st.sampled_from(
        [*(token.content for token in ADDED), "@gene$", "두통", "DRUG", "ＤＲＵＧ", "頭痛", "é", "e\u0301"]
    ),
    st.text(SINGLE, max_size=4),
    st.text(max_size=3),
)
texts = st.lists(st.builds(str.join, st.sampled_from([" ", ""]), st.lists(words, max_size=6)))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=texts)
def test_any_text(copies, texts):
    compare(copies, ["", *(text for text in texts if not any(token in text for token in SPECIAL_TOKENS))])


def test_the_five_special_tokens_in_a_text_stay_text(copies):
    _, theirs, encoder, _, _ = copies[1]
    assert theirs("[SEP]", add_special_tokens=False)["input_ids"] == [theirs.sep_token_id]
    ids, _ = encoder.encode(pa.array(["[SEP] [DRUG]"]))
    vocabulary = encoder._tokenizer.get_vocab()
    assert ids.tolist() == [vocabulary[piece] for piece in ("[", "s", "##e", "##p", "]", "[DRUG]")]
