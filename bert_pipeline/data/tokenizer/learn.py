"""Learn WordPiece pieces from word counts: the algorithm of the trainer in `tokenizers`, with 64-bit counts.

Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) over words split into characters, where every character
except a word's first has the prefix ##: the most frequent pair of adjacent symbols becomes one piece, until the
vocabulary is full. `tokenizers` counts pairs in 32 bits, which a common pair exceeds in about a hundred gigabytes of
text; beyond that, its vocabulary lacks the most common words.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from bert_pipeline.core.progress import Progress
from bert_pipeline.data.tokenizer.merges import Pairs, count_pairs, merge, most_frequent, with_room
from bert_pipeline.formats.tokenizer import PREFIX


class Spelling(NamedTuple):
    """Concatenated code points of words; word n has lengths[n] code points and occurs counts[n] times."""

    code_points: np.ndarray  # (characters,) int32
    lengths: np.ndarray  # (words,) int32
    counts: np.ndarray  # (words,) int64


class Alphabet(NamedTuple):
    """The characters that have pieces of their own."""

    initial: list[str]  # all of them, sorted: each can start a word
    inside: list[str]  # those that can follow another character in a word, sorted: they have a piece with ##, too

    @property
    def num_pieces(self) -> int:
        return len(self.initial) + len(self.inside)


class Learnt(NamedTuple):
    pieces: list[str]  # in the order of their ids
    last_count: int  # count of the last merged pair; every more frequent word is a piece


def spell(words: pa.StringArray, counts: np.ndarray) -> Spelling:
    """Split words into code points; `counts`: (words,) int64."""
    text = bytearray("".join(words.to_pylist()).encode("utf-32-le"))
    return Spelling(np.frombuffer(text, np.int32), np.array(pc.utf8_length(words)), np.array(counts))


def character_counts(spelling: Spelling) -> dict[str, int]:
    """How often each character occurs."""
    counts = np.zeros(0x110000, np.int64)
    np.add.at(counts, spelling.code_points, np.repeat(spelling.counts, spelling.lengths))
    return {chr(point): int(counts[point]) for point in np.flatnonzero(counts)}


def learn_pieces(
    spelling: Spelling, alphabet: Alphabet, special_tokens: tuple[str, ...], vocab_size: int, min_frequency: int
) -> Learnt:
    """Merge pairs that occur at least `min_frequency` times, until there are `vocab_size` pieces or no such pair.

    Ids start with `special_tokens`, then the characters of `alphabet` with ##, then those without. Characters outside
    `alphabet` are removed from the words. The function overwrites `spelling`.
    """
    pieces = [*special_tokens, *(PREFIX + character for character in alphabet.inside), *alphabet.initial]
    pairs = count_pairs(*_symbols(spelling, alphabet, len(special_tokens)), spelling.counts)
    return Learnt(pieces, merge_frequent_pairs(pieces, pairs, vocab_size, min_frequency))


def merge_frequent_pairs(pieces: list[str], pairs: Pairs, vocab_size: int, min_frequency: int) -> int:
    """Append the merged pairs to `pieces`, most frequent first; return the count of the last one.

    The ids in `pairs` are places in `pieces`.
    """
    ids = {piece: number for number, piece in enumerate(pieces)}
    progress = Progress("tokenizer: merging pairs", max(vocab_size - len(pieces), 0), "pieces")
    last_count = int(np.iinfo(np.int64).max)  # before any merge, no word is more frequent
    while len(pieces) < vocab_size:
        key, count, words = most_frequent(pairs)
        if count < max(min_frequency, 1):
            break
        last_count = count
        piece = pieces[key >> 32] + pieces[key & 0xFFFFFFFF].removeprefix(PREFIX)
        number = ids.setdefault(piece, len(pieces))  # a + ##bc may give the same piece as ab + ##c
        if number == len(pieces):
            pieces.append(piece)
            progress.advance()
        pairs = with_room(pairs, 2 * len(pieces))  # every new pair contains the new piece
        merge(pairs, key, words, number)
    return last_count


def _symbols(spelling: Spelling, alphabet: Alphabet, first_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(symbols, lengths): the words as ids of single-character pieces."""
    inside, initial = np.full((2, 0x110000), -1, np.int32)
    inside[[ord(each) for each in alphabet.inside]] = first_id + np.arange(len(alphabet.inside))
    initial[[ord(each) for each in alphabet.initial]] = (
        first_id + len(alphabet.inside) + np.arange(len(alphabet.initial))
    )
    num_symbols = _write_symbols(spelling.code_points, spelling.lengths, initial, inside)
    return spelling.code_points[:num_symbols], spelling.lengths


@njit(cache=True)
def _write_symbols(code_points, lengths, initial, inside):
    """Overwrite code points and lengths with symbols; skip characters without an id. Returns the number of symbols."""
    at, end = 0, 0
    for word in range(len(lengths)):
        start = end
        for n in range(lengths[word]):
            symbol = initial[code_points[at]] if n == 0 else inside[code_points[at]]
            if symbol >= 0:
                code_points[end] = symbol
                end += 1
            at += 1
        lengths[word] = end - start
    return end
