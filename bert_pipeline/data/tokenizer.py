"""The vocabulary: WordPiece pieces learnt from the corpus itself, saved for `AutoTokenizer`.

The trainer of the `tokenizers` library numbers the continuation characters (##a, ##b, ...) in the order
of a randomly seeded hash map and breaks ties between equally frequent merges by those numbers, so two
trainings on one text give two vocabularies. Here the alphabet is counted and numbered beforehand, which
makes the vocabulary a function of the text alone.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import WordPiece as WordPieceDecoder

from bert_pipeline import formats
from bert_pipeline.artifact import Facts
from bert_pipeline.formats import CLS_ID, SEP_ID, SPECIAL_TOKENS, UNK_ID
from bert_pipeline.progress import Progress
from bert_pipeline.recipe import TokenizerRecipe

HELDOUT_DOCUMENTS = 20_000
"""Held-out documents that the facts are measured on, at most."""

log = logging.getLogger(__name__)


class VocabularyError(ValueError):
    """The text cannot give the vocabulary that the recipe asks for."""


def build_tokenizer(section: TokenizerRecipe, raw_corpus: Path, out: Path) -> Facts:
    """Train a WordPiece vocabulary on the training split and save it as a Hugging Face tokenizer."""
    tokenizer = train_wordpiece(section, lambda: _sentences(raw_corpus, "train"))
    save_tokenizer(tokenizer, section.lowercase, out)
    special_token_ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "special_token_ids": special_token_ids,
        **_measure(tokenizer, raw_corpus),
    }


def _sentences(raw_corpus: Path, split: str) -> Iterator[str]:
    for document in formats.iterate_documents(raw_corpus, split):
        yield from document


def train_wordpiece(section: TokenizerRecipe, sentences: Any) -> Tokenizer:
    """Learn the vocabulary. `sentences()` returns a fresh iterator over the text; it is read twice.

    Raises VocabularyError where the text has too few distinct pieces for `vocab_size`.
    """
    tokenizer = _untrained(section.lowercase, vocabulary={"[UNK]": 0})
    alphabet = _alphabet(tokenizer.normalizer, sentences(), section.limit_alphabet)
    trainer = trainers.WordPieceTrainer(
        vocab_size=section.vocab_size,
        min_frequency=section.min_frequency,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{character}" for character in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_counted(sentences()), trainer)
    pieces = tokenizer.get_vocab()
    if len(pieces) < section.vocab_size:
        raise VocabularyError(
            f"tokenizer.vocab_size = {section.vocab_size}, but the text gives only {len(pieces)} pieces that occur "
            f"{section.min_frequency} times; remedy: tokenizer.vocab_size = {len(pieces)} or less, or more text"
        )
    if len(pieces) > section.vocab_size:
        raise VocabularyError(
            f"tokenizer.vocab_size = {section.vocab_size}, but the {len(alphabet)} characters of the text alone need "
            f"{len(pieces)}; remedy: a larger vocab_size or a smaller tokenizer.limit_alphabet"
        )
    return _untrained(section.lowercase, pieces)  # anew, so that the characters are no special tokens


def _untrained(lowercase: bool, vocabulary: dict[str, int]) -> Tokenizer:
    """BERT's normaliser, splitter and row template (google-research/bert, tokenization.py) over a vocabulary."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    if "[CLS]" in vocabulary:
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", CLS_ID), ("[SEP]", SEP_ID)],
        )
    return tokenizer


def _alphabet(normalizer: Any, sentences: Iterator[str], limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation (ties by code point), sorted."""
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(normalizer.normalize_str(sentence))
    ranked = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    if len(ranked) > limit:
        log.info("tokenizer: %d rare characters beyond limit_alphabet = %d become [UNK]", len(ranked) - limit, limit)
    return sorted(ranked[:limit])


def _counted(sentences: Iterator[str]) -> Iterator[str]:
    progress = Progress("tokenizer: reading", None, "sentences")
    for sentence in sentences:
        progress.advance()
        yield sentence


def save_tokenizer(tokenizer: Tokenizer, lowercase: bool, out: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and vocab.txt, and check the ids of the special tokens."""
    from transformers import BertTokenizer

    wrong = {t: tokenizer.token_to_id(t) for n, t in enumerate(SPECIAL_TOKENS) if tokenizer.token_to_id(t) != n}
    if wrong:
        raise VocabularyError(f"special tokens must have the ids 0 to {len(SPECIAL_TOKENS) - 1} in the order of "
                              f"{SPECIAL_TOKENS}, but: {wrong}")  # fmt: skip
    BertTokenizer(tokenizer_object=tokenizer, do_lower_case=lowercase).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (out / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces), encoding="utf-8")


def _measure(tokenizer: Tokenizer, raw_corpus: Path) -> Facts:
    """How the vocabulary fits text that it was not made from."""
    words: Counter[str] = Counter()
    for number, document in enumerate(formats.iterate_documents(raw_corpus, "heldout")):
        if number == HELDOUT_DOCUMENTS:
            break
        for sentence in document:
            normal = tokenizer.normalizer.normalize_str(sentence)
            words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    distinct = list(words)
    encoded = dict(zip(distinct, tokenizer.encode_batch(distinct, add_special_tokens=False), strict=True))
    total = sum(words.values())
    pieces = sum(words[word] * len(encoded[word].ids) for word in distinct)
    unknown = sum(words[word] * encoded[word].ids.count(UNK_ID) for word in distinct)
    worst = sorted(distinct, key=lambda word: (-len(encoded[word].ids), -words[word], word))[:10]
    frequent = [word for word, _ in words.most_common(5)]
    return {
        "heldout_words": total,
        "heldout_unk_fraction": unknown / max(pieces, 1),
        "heldout_pieces_per_word": pieces / max(total, 1),
        "worst_words": [[word, encoded[word].tokens] for word in worst],
        "example": "  ".join(" ".join(encoded[word].tokens) for word in worst[:3] + frequent),
    }
