"""Counter-based random numbers: every draw is a pure function of seed, purpose, pass, shard and row.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3) turns a
128-bit counter and a 64-bit key into 128 random bits. Here

    counter = (block of the stream, row, shard, pass)      key = (seed of the recipe, what is drawn and shard)

where a shard is a number of 59 bits (`formats.shard_key`), 32 of them in the counter and 27 in the key.
So every row has its own stream, and any worker can reproduce it at any time.
A stream is a (11,) uint32 array that the compiled functions below read and advance.
"""

import numpy as np
from numba import njit

PAIRS, MASKS, ORDER, DROPOUT = range(4)
"""Purposes of a draw. For rows of the held-out split HELDOUT is added. They are the lowest 5 bits of the key's second
half."""
HELDOUT = 16

_BUFFER, _USED = 6, 10  # stream: counter 0-3, key 4-5, four drawn words 6-9, number of used words 10


@njit(cache=True)
def philox(counter: np.ndarray, key: np.ndarray, out: np.ndarray) -> None:
    """Ten rounds of Philox4x32: write (4,) uint32 to `out` from a (4,) uint32 counter and a (2,) uint32 key."""
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    c0, c1, c2, c3 = np.uint64(counter[0]), np.uint64(counter[1]), np.uint64(counter[2]), np.uint64(counter[3])
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (product1 >> half) ^ c1 ^ k0, product1 & mask, (product0 >> half) ^ c3 ^ k1, product0 & mask
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    out[0], out[1], out[2], out[3] = np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)


@njit(cache=True)
def open_stream(stream: np.ndarray, seed: int, what: int, number: int, shard: int, row: int) -> None:
    """Set a (11,) uint32 array to the start of the stream of (seed, what, pass number, shard, row)."""
    low, high = np.uint32(shard & 0xFFFFFFFF), np.uint32(shard >> 32)
    stream[0], stream[1], stream[2], stream[3] = 0, np.uint32(row), low, np.uint32(number)
    stream[4], stream[5], stream[_USED] = np.uint32(seed), np.uint32(what) | high << np.uint32(5), 4


def new_stream(seed: int, what: int, number: int = 0, shard: int = 0, row: int = 0) -> np.ndarray:
    stream = np.zeros(11, np.uint32)
    open_stream(stream, seed, what, number, shard, row)
    return stream


@njit(cache=True)
def draw(stream: np.ndarray) -> np.uint64:
    """The next 32 random bits of the stream."""
    if stream[_USED] == 4:
        philox(stream[:4], stream[4:6], stream[_BUFFER:_USED])
        stream[0] += np.uint32(1)
        stream[_USED] = 0
    word = stream[_BUFFER + stream[_USED]]
    stream[_USED] += np.uint32(1)
    return np.uint64(word)


@njit(cache=True)
def happens(stream: np.ndarray, probability: float) -> bool:
    """True with this probability (resolution 2**-32)."""
    return bool(draw(stream) < probability * 4294967296.0)


@njit(cache=True)
def below(stream: np.ndarray, limit: int) -> np.int64:
    """An integer in [0, limit), uniform up to limit / 2**32 (Lemire 2019, without rejection)."""
    return np.int64((draw(stream) * np.uint64(limit)) >> np.uint64(32))


@njit(cache=True, nogil=True)  # so that the loader's thread does not block the training loop
def permuted(positions: np.ndarray, size: int, seed: int, number: int) -> np.ndarray:
    """Map `positions` (int64, each in [0, size)) through a permutation of [0, size); returns int64.

    The permutation is a function of (seed, number): a Feistel network of four rounds over the next even power of two
    (Luby and Rackoff 1988), repeated until the result is in range (Black and Rogaway 2002). The cost per position does
    not depend on the size, so training can resume at any position of an epoch's order.
    """
    half_bits = 1
    while (1 << (2 * half_bits)) < size:
        half_bits += 1
    half_mask = np.int64((1 << half_bits) - 1)
    counter, key, out = np.zeros(4, np.uint32), np.zeros(2, np.uint32), np.zeros(4, np.uint32)
    key[0], key[1] = np.uint32(seed), np.uint32(ORDER)
    counter[3] = np.uint32(number)
    result = np.empty(len(positions), np.int64)
    for n in range(len(positions)):
        place = np.int64(positions[n])
        while True:
            left, right = place >> half_bits, place & half_mask
            for turn in range(4):
                counter[0], counter[1] = np.uint32(right), np.uint32(turn)
                philox(counter, key, out)
                left, right = right, left ^ (np.int64(out[0]) & half_mask)
            place = (left << half_bits) | right
            if place < size:
                break
        result[n] = place
    return result
