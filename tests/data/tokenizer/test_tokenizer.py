import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from bert_pipeline.data.tokenizer import build as tokenizer_stage
from bert_pipeline.data.tokenizer.build import (
    VocabularyError,
    VocabularySizeError,
    build_tokenizer,
    save_tokenizer,
    train_wordpiece,
)
from bert_pipeline.data.tokenizer.encoding import Encoder
from bert_pipeline.data.tokenizer.learn import Learnt
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.recipe import TokenizerRecipe

TEXT = [f"Patient {n} received {drug} for angina; it helped." for n in range(50) for drug in ("Atenolol", "naïve Café")]


def train(**changed):
    return train_wordpiece(TokenizerRecipe(**{"vocab_size": 120} | changed), TEXT)


PROGRAM = """
import sys
from pathlib import Path
from bert_pipeline.data.tokenizer.build import build_tokenizer
from bert_pipeline.recipe import TokenizerRecipe
build_tokenizer(TokenizerRecipe(vocab_size=800), Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_the_vocabulary_is_a_function_of_the_text(tiny, run_python, tmp_path):
    """It does not depend on workers or hash seeds, by which the trainer of `tokenizers` breaks ties."""
    for workers, seed in [("1", "0"), ("2", "1")]:
        out = tmp_path / workers
        out.mkdir()
        environment = {"BERT_PIPELINE_WORKERS": workers, "PYTHONHASHSEED": seed}
        run = run_python("-c", PROGRAM, str(tiny["raw_corpus"].path), str(out), **environment)
        assert run.returncode == 0, run.stderr
        assert sorted(path.name for path in out.iterdir()) == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
        for path in out.iterdir():
            assert path.read_bytes() == (tiny["tokenizer"].path / path.name).read_bytes(), path.name


def test_special_tokens_have_the_first_ids(tmp_path):
    tokenizer = train()
    assert [tokenizer.token_to_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert tokenizer.get_vocab_size() == 120


@pytest.mark.parametrize("strip_accents", [None, True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_auto_tokenizer_gives_the_same_ids(tmp_path, lowercase, strip_accents):
    tokenizer = train(lowercase=lowercase, strip_accents=strip_accents, vocab_size=130)
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXT[:4], "Naïve CAFÉ", "unseen zzz", "α-blocker"]
    ids, offsets = Encoder(read_tokenizer(tmp_path)).encode(pa.array(texts))
    for number, text in enumerate(texts):
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert loaded(text, add_special_tokens=False)["input_ids"] == expected
        assert ids[offsets[number] : offsets[number + 1]].tolist() == expected
    pair = loaded("Patient 1", "it helped")
    assert pair["input_ids"][0] == 2 and pair["input_ids"].count(3) == 2
    assert pair["token_type_ids"] == sorted(pair["token_type_ids"]) and set(pair["token_type_ids"]) == {0, 1}
    assert (loaded.pad_token_id, loaded.mask_token_id) == (0, 4)
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert {piece: n for n, piece in enumerate(lines)} == tokenizer.get_vocab()


def test_uncased_is_the_default_and_cased_by_recipe():
    assert train().encode("ATENOLOL").tokens == train().encode("atenolol").tokens
    cased = train(lowercase=False, vocab_size=130)
    assert cased.encode("Atenolol").tokens != cased.encode("atenolol").tokens


def test_korean_syllables_stay_composed_without_stripping(tmp_path):
    text = ["환자는 두통을 호소하였다", "두통이 심하다", "환자는 두통이 있다"]
    section = TokenizerRecipe(vocab_size=100, min_frequency=1, strip_accents=False)
    with pytest.raises(VocabularyError, match=r"yields only (\d+) pieces"):
        train_wordpiece(section, text)
    tokenizer = train_wordpiece(section, [*text, *(chr(n) for n in range(0xAC00, 0xAC20))])
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert "두통" in loaded.get_vocab()
    for decode in (loaded.decode, read_tokenizer(tmp_path).decode):
        assert decode(loaded.encode(text[0], add_special_tokens=False)) == text[0]
    as_bert_does = train_wordpiece(TokenizerRecipe(vocab_size=100, min_frequency=1), [*text, "abcdefghijklmnopqr"])
    assert "두통" not in as_bert_does.decode(as_bert_does.encode(text[0]).ids), "jamo"


def test_more_pieces_than_the_text_can_yield_are_refused():
    with pytest.raises(VocabularyError, match=r"vocab_size = 5000, but the text yields only \d+ pieces .* remedy"):
        train(vocab_size=5000)


def test_fewer_pieces_than_the_alphabet_needs_are_refused():
    with pytest.raises(
        VocabularyError, match=r"vocab_size = 100, but the \d+ characters .* smaller tokenizer.limit_al"
    ):
        train_wordpiece(TokenizerRecipe(vocab_size=100), [chr(n) * 3 for n in range(97, 600)])


@pytest.mark.parametrize("vocab_size", [100, 5000])
def test_a_refused_size_names_a_possible_one(vocab_size):
    """In Chinese text each character is a word, so there is little to merge and much of an alphabet."""
    text = [chr(n) * 3 for n in range(0x4E00, 0x4E00 + 300)]
    with pytest.raises(VocabularySizeError) as refused:
        train_wordpiece(TokenizerRecipe(vocab_size=vocab_size), text)
    possible = refused.value.possible
    assert train_wordpiece(TokenizerRecipe(vocab_size=possible), text).get_vocab_size() == possible


def test_a_common_word_that_is_not_a_piece_is_refused(monkeypatch):
    """This happens if pairs are counted in 32 bits and the highest counts turn negative."""
    learn = tokenizer_stage.learn_pieces

    def learn_without_patient(*arguments):
        learnt = learn(*arguments)
        return Learnt([piece.replace("patient", "patiens") for piece in learnt.pieces], learnt.last_count)

    assert "patient" in train().get_vocab()
    monkeypatch.setattr(tokenizer_stage, "learn_pieces", learn_without_patient)
    with pytest.raises(VocabularyError, match=r"the word 'patient' occurs 100 times, .* pairs were miscounted; remedy"):
        train()


def test_ids_with_a_gap_are_refused(tmp_path):
    tokenizer = train()
    pieces = {piece: number + (number == 119) for piece, number in tokenizer.get_vocab().items()}
    with pytest.raises(VocabularyError, match=r"ids must be 0 to 119, each used once, but .* has 120, not 119"):
        save_tokenizer(tokenizer_stage._bert_tokenizer(tokenizer.normalizer, pieces), tmp_path)


def test_text_without_a_word_is_refused():
    with pytest.raises(VocabularyError, match="the text yields only 5 pieces"):
        train_wordpiece(TokenizerRecipe(vocab_size=100), [" ", ""])


def test_a_sample_of_the_documents_by_recipe(tiny, tmp_path):
    section = TokenizerRecipe(vocab_size=300, max_documents=90)
    facts = build_tokenizer(section, tiny["raw_corpus"].path, tmp_path)
    everything = tiny["tokenizer"].facts
    assert everything["training_documents"] == tiny["raw_corpus"].facts["train_documents"]
    assert 60 < facts["training_documents"] < 120
    share = facts["training_documents"] / everything["training_documents"]
    assert facts["training_words"] == pytest.approx(share * everything["training_words"], rel=0.2)
    assert facts["distinct_words"] < everything["distinct_words"]


def test_facts_measure_how_well_the_vocabulary_fits(tiny):
    facts = tiny["tokenizer"].facts
    assert (facts["vocab_size"], facts["padded_vocab_size"]) == (800, 832)
    assert facts["training_words"] > facts["distinct_words"] > facts["cut_words"] == 0
    assert facts["heldout_unk_fraction"] < 0.01
    assert 1.0 <= facts["heldout_pieces_per_word"] < 3.0
    word, pieces = facts["worst_words"][0]
    assert "".join(piece.removeprefix("##") for piece in pieces) == word and len(pieces) > 3
