import pytest
from transformers import AutoTokenizer

from bert_pipeline.data.tokenizer import VocabularyError, save_tokenizer, train_wordpiece
from bert_pipeline.recipe import TokenizerRecipe

TEXT = [f"Patient {n} received {drug} for angina; it helped." for n in range(50) for drug in ("Atenolol", "naïve Café")]


def train(**changed):
    return train_wordpiece(TokenizerRecipe(**{"vocab_size": 120} | changed), lambda: iter(TEXT))


PROGRAM = """
from bert_pipeline.data.tokenizer import train_wordpiece
from bert_pipeline.recipe import TokenizerRecipe
letters = "abcdefghijklmnopqrst"
text = [f"word{a}{b} {b}{a}{c} {c}{b}{a}s" for a in letters for b in letters for c in letters]
tokenizer = train_wordpiece(TokenizerRecipe(vocab_size=300), lambda: iter(text))
print(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
"""


def test_the_vocabulary_is_a_function_of_the_text(run_python):
    """The trainer alone gives another vocabulary in each process: ties are broken by a randomly seeded hash map."""
    runs = [run_python("-c", PROGRAM, PYTHONHASHSEED=str(seed)) for seed in range(3)]
    assert "[MASK]" in runs[0].stdout, runs[0].stderr
    assert len({run.stdout for run in runs}) == 1


def test_special_tokens_have_the_first_ids(tmp_path):
    tokenizer = train()
    assert [tokenizer.token_to_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert tokenizer.get_vocab_size() == 120


@pytest.mark.parametrize("lowercase", [True, False])
def test_auto_tokenizer_gives_the_same_ids(tmp_path, lowercase):
    tokenizer = train(lowercase=lowercase, vocab_size=130)
    save_tokenizer(tokenizer, lowercase, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXT[:4], "Naïve CAFÉ", "unseen zzz", "α-blocker"]:
        assert (
            loaded(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text, add_special_tokens=False).ids
        )
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


def test_more_pieces_than_the_text_can_give_is_refused():
    with pytest.raises(VocabularyError, match=r"vocab_size = 5000, but the text gives only \d+ pieces .* remedy"):
        train(vocab_size=5000)


def test_fewer_pieces_than_the_alphabet_needs_is_refused():
    with pytest.raises(
        VocabularyError, match=r"vocab_size = 100, but the \d+ characters .* smaller tokenizer.limit_al"
    ):
        train_wordpiece(TokenizerRecipe(vocab_size=100), lambda: iter([chr(n) * 3 for n in range(97, 600)]))


def test_facts_tell_how_the_vocabulary_fits(tiny):
    facts = tiny["tokenizer"].facts
    assert facts["vocab_size"] == 800
    assert facts["heldout_unk_fraction"] < 0.01
    assert 1.0 <= facts["heldout_pieces_per_word"] < 3.0
    word, pieces = facts["worst_words"][0]
    assert "".join(piece.removeprefix("##") for piece in pieces) == word and len(pieces) > 3
