"""WordPiece pieces from word counts: what the trainer of `tokenizers` computes, compiled, and counted in 64 bits.

Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) over words spelt in characters, where each character
but a word's first bears ##: the most frequent pair of neighbours becomes one piece, until the vocabulary is full.
`tokenizers` counts pairs in 32 bits, which a common pair exceeds in some hundred gigabytes of text; from there on
the most common words are no longer among its pieces.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from bert_pipeline.core.progress import Progress
from bert_pipeline.data.tokenizer.merges import count_pairs, merge, most_frequent, with_room

PREFIX = "##"


class Spelling(NamedTuple):
    """Words one after the other in code points; word n has lengths[n] of them and occurs counts[n] times."""

    code_points: np.ndarray  # (characters,) int32
    lengths: np.ndarray  # (words,) int32
    counts: np.ndarray  # (words,) int64


class Learnt(NamedTuple):
    pieces: list[str]  # in the order of their ids
    last_count: int  # occurrences of the pair that was merged last: every word more frequent than that is a piece


def spell(words: pa.StringArray, counts: np.ndarray) -> Spelling:
    text = bytearray("".join(words.to_pylist()).encode("utf-32-le"))
    return Spelling(np.frombuffer(text, np.int32), np.array(pc.utf8_length(words)), np.array(counts))


def character_counts(spelling: Spelling) -> dict[str, int]:
    """How often each character occurs."""
    counts = np.zeros(0x110000, np.int64)
    np.add.at(counts, spelling.code_points, np.repeat(spelling.counts, spelling.lengths))
    return {chr(point): int(counts[point]) for point in np.flatnonzero(counts)}


def learn_pieces(
    spelling: Spelling, alphabet: list[str], special_tokens: tuple[str, ...], vocab_size: int, min_frequency: int
) -> Learnt:
    """Merge pairs that occur `min_frequency` times until there are `vocab_size` pieces, or no such pair is left.

    The first ids are those of `special_tokens`, of each character of `alphabet` with ##, and of each as it is;
    other characters are left out of the words. The spelling is used up: symbols are written over it.
    """
    pieces = [*special_tokens, *(PREFIX + character for character in alphabet), *alphabet]
    ids = {piece: number for number, piece in enumerate(pieces)}
    pairs = count_pairs(*_symbols(spelling, alphabet, len(special_tokens)), spelling.counts)
    progress = Progress("tokenizer: merging pairs", max(vocab_size - len(pieces), 0), "pieces")
    last_count = np.iinfo(np.int64).max  # no room for any word
    while len(pieces) < vocab_size:
        key, count, words = most_frequent(pairs)
        if count < max(min_frequency, 1):
            break
        last_count = count
        piece = pieces[key >> 32] + pieces[key & 0xFFFFFFFF].removeprefix(PREFIX)
        number = ids.setdefault(piece, len(pieces))  # a + ##bc may give what ab + ##c gave before
        if number == len(pieces):
            pieces.append(piece)
            progress.advance()
        pairs = with_room(pairs, 2 * len(pieces))  # a new pair has the new piece on one side
        merge(pairs, key, words, number)
    return Learnt(pieces, last_count)


def _symbols(spelling: Spelling, alphabet: list[str], first_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(symbols, lengths): the pieces that the words begin as."""
    ids = np.full(0x110000, -1, np.int32)
    ids[[ord(character) for character in alphabet]] = first_id + np.arange(len(alphabet))
    num_symbols = _write_symbols(spelling.code_points, spelling.lengths, ids, len(alphabet))
    return spelling.code_points[:num_symbols], spelling.lengths


@njit(cache=True)
def _write_symbols(code_points, lengths, ids, size):
    """Over the code points and lengths; characters without an id are left out. Returns the number of symbols."""
    at, end = 0, 0
    for word in range(len(lengths)):
        start = end
        for n in range(lengths[word]):
            symbol = ids[code_points[at]]
            if symbol >= 0:
                code_points[end] = symbol + size if n == 0 else symbol
                end += 1
            at += 1
        lengths[word] = end - start
    return end
