"""Choose the characters of a vocabulary, and the single-character pieces that they need.

Every character can start a word, so each has a piece. It can also follow another character and then needs a piece with
##, unless BERT's tokenizer makes it a word of its own wherever it stands: punctuation, and Chinese characters. The
tokenizer decides this, not the training text: a letter that starts no word there may start one in other text, and that
word would be [UNK].

Marks have both pieces. They follow a letter, but they start a word after a character that is itself a word: a
variation selector after a Chinese character, or the marks of a keycap emoji after #.
"""

import logging
from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer

from bert_pipeline.data.tokenizer.learn import Alphabet, Spelling, character_counts
from bert_pipeline.formats.tokenizer import SPECIAL_TOKENS
from bert_pipeline.store.artifact import Facts

MAX_CUT_WORDS = 0.001
"""Warn if a larger share of the training words contains a character beyond limit_alphabet: each becomes one [UNK]."""

log = logging.getLogger(__name__)


def choose_alphabet(spelling: Spelling, limit: int, tokenizer: Tokenizer) -> tuple[Alphabet, Facts]:
    """Choose the `limit` most frequent characters; ties by code point. The facts tell whether `limit` is too small.

    `tokenizer`: its normalizer and its pre-tokenizer gave these words.
    """
    counts = character_counts(spelling)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = alphabet_of(ranked[:limit], tokenizer)
    if len(ranked) <= limit:
        return alphabet, {}
    cut = _cut_words(spelling, ranked)
    if cut[limit] <= MAX_CUT_WORDS:
        log.info("tokenizer: %d rare characters beyond limit_alphabet = %d become [UNK]", len(ranked) - limit, limit)
        return alphabet, {}
    needed = int(np.argmax(cut <= MAX_CUT_WORDS))
    needed_pieces = len(SPECIAL_TOKENS) + alphabet_of(ranked[:needed], tokenizer).num_pieces
    log.warning(
        "tokenizer: %.2f %% of the words become [UNK], because tokenizer.limit_alphabet = %d is smaller than the %d "
        "characters of the text; remedy: set tokenizer.limit_alphabet to %d or more, and tokenizer.vocab_size to more "
        "than %d, which the special tokens and these characters take",
        100 * cut[limit], limit, len(ranked), needed, needed_pieces,
    )  # fmt: skip
    return alphabet, {
        "cut_words_fraction": float(cut[limit]),
        "needed_alphabet": needed,
        "needed_alphabet_pieces": needed_pieces,
    }


def alphabet_of(characters: Iterable[str], tokenizer: Tokenizer) -> Alphabet:
    """The characters as the tokenizer splits them; each is one that its normalizer leaves as it is."""
    normalize, split = tokenizer.normalizer.normalize_str, tokenizer.pre_tokenizer.pre_tokenize_str
    initial = sorted(characters)
    return Alphabet(initial, [each for each in initial if len(split(normalize(f"a{each}a"))) == 1])


def _cut_words(spelling: Spelling, ranked: list[str]) -> np.ndarray:
    """(characters + 1,) float64: entry n is the share of words with a character beyond the first n."""
    ranks = np.zeros(0x110000, np.int32)
    ranks[[ord(character) for character in ranked]] = np.arange(len(ranked))
    ends = np.cumsum(spelling.lengths)
    rarest = np.maximum.reduceat(ranks[spelling.code_points], ends - spelling.lengths)  # no word is empty
    total = spelling.counts.sum()
    return (total - np.cumsum(np.bincount(rarest + 1, spelling.counts, len(ranked) + 1))) / total
