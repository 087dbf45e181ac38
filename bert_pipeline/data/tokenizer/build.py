"""The tokenizer stage: learn a WordPiece vocabulary from the corpus and save it for `AutoTokenizer`.

    shards -> word counts (counts.py) -> characters (alphabet.py) -> pieces (learn.py) -> tokenizer.json

The vocabulary depends on the text alone: not on shards, workers, or the seed of a hash map.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.normalizers import BertNormalizer

from bert_pipeline.data.tokenizer.accents import MAX_STRIPPED_FRACTION, REMEDY, describe_stripped, stripped_letters
from bert_pipeline.data.tokenizer.alphabet import choose_alphabet
from bert_pipeline.data.tokenizer.counts import Sample, as_table, count_corpus, count_words
from bert_pipeline.data.tokenizer.extend import useful_pieces
from bert_pipeline.data.tokenizer.learn import learn_pieces, spell
from bert_pipeline.formats.corpus import CorpusShard, corpus_shards
from bert_pipeline.formats.initial_model import Vocabulary, read_vocabulary
from bert_pipeline.formats.tokenizer import CLS_ID, SEP_ID, SPECIAL_TOKENS, UNK_ID, padded_vocab_size
from bert_pipeline.recipe import TokenizerRecipe
from bert_pipeline.store.artifact import Facts

HELDOUT_DOCUMENTS = 20_000
"""Maximum number of held-out documents on which the facts are measured."""
CHECKED_WORDS = 100
SHOWN_PIECES = 20

log = logging.getLogger(__name__)


class VocabularyError(ValueError):
    """The text cannot yield the vocabulary that the recipe requests."""


class VocabularySizeError(VocabularyError):
    """The vocabulary, or its extension, needs another number of pieces."""

    def __init__(self, message: str, possible: int) -> None:
        """`possible`: a number of pieces that this text yields with the other settings."""
        super().__init__(message)
        self.possible = possible


def build_tokenizer(section: TokenizerRecipe, raw_corpus: Path, out: Path) -> Facts:
    """Train a WordPiece vocabulary on the training split and save it as a Hugging Face tokenizer."""
    shards = corpus_shards(raw_corpus, "train")
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        sample = Sample(section.seed, _share(section.max_documents, shards))
        counted = count_corpus(_bert_tokenizer(_normalizer(section)), shards, sample, Path(scratch))
    tokenizer, of_alphabet = _train(section, counted.words, counted.counts)
    save_tokenizer(tokenizer, out)
    measured = _measure(tokenizer, raw_corpus)
    share, examples = measured["heldout_stripped_fraction"], measured["stripped_examples"]
    if section.strip_accents is None and share > MAX_STRIPPED_FRACTION:
        log.warning("tokenizer: %s; remedy: %s", describe_stripped(share, examples), REMEDY)
    return {
        **_about(tokenizer),
        **of_alphabet,
        "training_documents": counted.num_documents,
        "training_words": int(counted.counts.sum()) + counted.num_cut,
        "distinct_words": counted.num_distinct,
        "cut_words": counted.num_cut,
        **measured,
    }


def take_tokenizer_over(section: TokenizerRecipe, init_from: Path, raw_corpus: Path, out: Path) -> Facts:
    """Save the vocabulary of the initial model with the special tokens first, and `section.extend` new pieces last.

    Raises VocabularyError if the text yields fewer useful pieces.
    """
    vocabulary = read_vocabulary(init_from)
    tokenizer = copy_tokenizer(vocabulary)
    if not section.extend:
        save_tokenizer(tokenizer, out)
        return {**_about(tokenizer), **_measure(tokenizer, raw_corpus)}
    shards = corpus_shards(raw_corpus, "train")
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        sample = Sample(section.seed, _share(section.max_documents, shards))
        counted = count_corpus(_bert_tokenizer(vocabulary.normalizer), shards, sample, Path(scratch))
    useful = useful_pieces(tokenizer, counted.words, counted.counts, section.extend, section.min_frequency)
    if len(useful) < section.extend:
        raise VocabularySizeError(
            f"tokenizer.extend = {section.extend}, but only {len(useful)} new pieces save tokens on this text; remedy: "
            f"set tokenizer.extend to {len(useful)} or less, or add text",
            len(useful),
        )
    extended = copy_tokenizer(vocabulary, [each.piece for each in useful])
    save_tokenizer(extended, out)
    return {
        **_about(extended),
        "added_pieces": len(useful),
        "most_useful_pieces": [list(each) for each in useful[:SHOWN_PIECES]],
        "training_documents": counted.num_documents,
        "initial_heldout_pieces_per_word": _measure(tokenizer, raw_corpus)["heldout_pieces_per_word"],
        **_measure(extended, raw_corpus),
    }


def copy_tokenizer(vocabulary: Vocabulary, new_pieces: Sequence[str] = ()) -> Tokenizer:
    """Return a tokenizer with our ids that gives the same pieces for any text, or `new_pieces` in place of some.

    One difference is intended: `read_tokenizer` encodes a special token that occurs in text, such as "[SEP]", as its
    characters.
    """
    in_model = (*vocabulary.in_our_order[: vocabulary.num_in_model], *new_pieces)
    numbered = {piece: number for number, piece in enumerate(in_model)}
    tokenizer = _bert_tokenizer(vocabulary.normalizer, numbered)
    tokenizer.add_tokens(list(vocabulary.added))
    return tokenizer


def _about(tokenizer: Tokenizer) -> Facts:
    vocab_size = tokenizer.get_vocab_size()
    return {
        "vocab_size": vocab_size,
        "padded_vocab_size": padded_vocab_size(vocab_size),
        "special_token_ids": {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS},
    }


def _share(max_documents: int, shards: list[CorpusShard]) -> float:
    num_documents = sum(shard.num_documents for shard in shards)
    return min(1.0, max_documents / num_documents) if max_documents else 1.0


def train_wordpiece(section: TokenizerRecipe, sentences: Iterable[str]) -> Tokenizer:
    """Learn a vocabulary from sentences in memory."""
    counts = as_table(count_words(_bert_tokenizer(_normalizer(section)), [pa.array(sentences, pa.string())]))
    tokenizer, _ = _train(section, counts["word"].combine_chunks(), counts["count"].to_numpy())
    return tokenizer


def _train(section: TokenizerRecipe, words: pa.StringArray, counts: np.ndarray) -> tuple[Tokenizer, Facts]:
    """Learn the pieces; the facts tell whether limit_alphabet is too small.

    Raises VocabularyError if the words yield too few pieces or have too many characters.
    """
    spelling = spell(words, counts)
    alphabet, facts = choose_alphabet(spelling, section.limit_alphabet, _bert_tokenizer(_normalizer(section)))
    pieces, last_count = learn_pieces(spelling, alphabet, SPECIAL_TOKENS, section.vocab_size, section.min_frequency)
    if len(pieces) < section.vocab_size:
        raise VocabularySizeError(
            f"tokenizer.vocab_size = {section.vocab_size}, but the text yields only {len(pieces)} pieces that occur "
            f"{section.min_frequency} times; remedy: set tokenizer.vocab_size to {len(pieces)} or less, or add text",
            len(pieces),
        )
    if len(pieces) > section.vocab_size:
        raise VocabularySizeError(
            f"tokenizer.vocab_size = {section.vocab_size}, but the {len(alphabet.initial)} characters of the text and "
            f"the special tokens alone need {len(pieces)}; remedy: use a larger vocab_size or a smaller "
            "tokenizer.limit_alphabet",
            len(pieces),
        )
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    ranked = ((words[n].as_py(), int(counts[n])) for n in np.argsort(-counts, kind="stable"))
    characters = set(alphabet.initial)
    spellable = ((word, count) for word, count in ranked if characters.issuperset(word))
    for word, count in islice(spellable, CHECKED_WORDS):
        if count > last_count and word not in vocabulary:  # tokenizers issue 437: "the" was missing
            raise VocabularyError(
                f"the word {word!r} occurs {count:,} times, the last merged pair only {last_count:,} times, yet the "
                "word is not a piece: pairs were miscounted; remedy: report this bug"
            )
    return _bert_tokenizer(_normalizer(section), vocabulary), facts


def _normalizer(section: TokenizerRecipe) -> BertNormalizer:
    return BertNormalizer(lowercase=section.lowercase, strip_accents=section.strip_accents)


def _bert_tokenizer(normalizer: BertNormalizer, vocabulary: dict[str, int] | None = None) -> Tokenizer:
    """A tokenizer with BERT's splitter and row template (google-research/bert, tokenization.py)."""
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary or {"[UNK]": UNK_ID}, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    if vocabulary:
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", CLS_ID), ("[SEP]", SEP_ID)],
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Check the ids, then write tokenizer.json, tokenizer_config.json and vocab.txt."""
    from transformers import BertTokenizer

    wrong = {t: tokenizer.token_to_id(t) for n, t in enumerate(SPECIAL_TOKENS) if tokenizer.token_to_id(t) != n}
    if wrong:
        raise VocabularyError(f"special tokens must have the ids 0 to {len(SPECIAL_TOKENS) - 1} in the order of "
                              f"{SPECIAL_TOKENS}, but: {wrong}")  # fmt: skip
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    for number, (piece, found) in enumerate(pieces):
        if found != number:
            raise VocabularyError(
                f"ids must be 0 to {len(pieces) - 1}, each used once, but {piece!r} has {found}, not {number}"
            )
    normalizer = tokenizer.normalizer
    settings = {
        "do_lower_case": normalizer.lowercase,
        "strip_accents": normalizer.strip_accents,
        "tokenize_chinese_chars": normalizer.handle_chinese_chars,
    }
    BertTokenizer(tokenizer_object=tokenizer, **settings).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces), encoding="utf-8")


def _measure(tokenizer: Tokenizer, raw_corpus: Path) -> Facts:
    """How well the vocabulary fits held-out text."""
    words = count_words(tokenizer, _heldout_sentences(raw_corpus))
    encoded = dict(zip(words, tokenizer.encode_batch(list(words), add_special_tokens=False), strict=True))
    pieces = sum(count * len(encoded[word].ids) for word, count in words.items())
    unknown = sum(count * encoded[word].ids.count(UNK_ID) for word, count in words.items())
    worst = sorted(words, key=lambda word: (-len(encoded[word].ids), -words[word], word))[:10]
    frequent = sorted(words, key=lambda word: (-words[word], word))[:5]
    normalizer = tokenizer.normalizer
    strips = normalizer.lowercase if normalizer.strip_accents is None else normalizer.strip_accents
    stripped = stripped_letters(_heldout_sentences(raw_corpus) if strips else [])
    return {
        "heldout_words": words.total(),
        "heldout_unk_fraction": unknown / max(pieces, 1),
        "heldout_pieces_per_word": pieces / max(words.total(), 1),
        "heldout_stripped_fraction": stripped.share,
        "stripped_examples": stripped.examples,
        "worst_words": [[word, encoded[word].tokens] for word in worst],
        "example": "  ".join(" ".join(encoded[word].tokens) for word in worst[:3] + frequent),
    }


def _heldout_sentences(raw_corpus: Path) -> Iterator[pa.StringArray]:
    left = HELDOUT_DOCUMENTS
    for shard in corpus_shards(raw_corpus, "heldout"):
        for batch in shard.batches("sentences"):
            yield batch["sentences"].slice(0, left).flatten()
            left -= len(batch)
            if left <= 0:
                return
