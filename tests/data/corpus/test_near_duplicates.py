"""Near duplicates: signatures, pairs and dropped records against slow reference implementations."""

import gzip
import hashlib
import json
import os
import random
import unicodedata
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.ngrams import words_of

from bert_pipeline.data.corpus import near_duplicates
from bert_pipeline.data.corpus.near_duplicates import (
    SIGNATURE_SIZE,
    bands,
    num_rows,
    packed,
    pairs_of_band,
    select_duplicates,
    signatures,
    similarity,
    unique_pairs,
)

TEXTS = [
    "The β-blocker (10 mg/kg) was given twice; the Sjögren's patients did well.",
    "Four words stand here",
    "One",
    "We gave the β-blocker, and the patients did not do well at all.",
]


GOLDEN_SIGNATURES = [[733090634, 150447837], [2145868157, 2305657975], [3922170316, 1796687272], [162791044, 453492757]]
GOLDEN_PACKED = [
    [50, 128, 83, 133, 88, 73],
    [40, 107, 101, 110, 167, 216],
    [49, 178, 165, 112, 50, 252],
    [239, 148, 57, 97, 41, 89],
]
GOLDEN_BANDS = [12013246906334072343, 15508227267010958585]


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = words_of(text)
    size = min(5, len(words))
    return frozenset(tuple(words[n : n + size]) for n in range(len(words) - size + 1) if size)


def jaccard(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def signature(text: str) -> list[int]:
    """The definition, in Python integers."""

    def mixed(code: int) -> int:
        code = (code ^ code >> 33) * 0xFF51AFD7ED558CCD % 2**64
        return code ^ code >> 33

    def fnv_1a(word: str) -> int:
        code = 0xCBF29CE484222325
        for byte in word.encode():
            code = (code ^ byte) * 0x100000001B3 % 2**64
        return mixed(code)

    codes = []
    for ngram in shingles(text):
        code = 0
        for word in ngram:
            code = (code * 0x9E3779B97F4A7C15 + fnv_1a(word)) % 2**64
        codes.append(mixed(code) % 2**32)
    bits = [int(each) % 2**32 for each in np.random.PCG64(0).random_raw(256)]
    permutations = zip(bits[:128], bits[128:], strict=True)
    return [min(((a | 1) * code + b) % 2**32 for code in codes) for a, b in permutations]


def text_of(rng: random.Random, num_words: int) -> str:
    return " ".join(f"w{rng.randrange(10**6)}" for _ in range(num_words))


def variant(rng: random.Random, text: str, wanted: float) -> str:
    """The text with another ending, so that its similarity to the text is `wanted`, up to whole words."""
    words = text.split()
    count = len(words) - 4
    kept = round(2 * count * wanted / (1 + wanted)) + 4
    return " ".join([*words[:kept], *text_of(rng, len(words) - kept).split()])


def planted(wanted: float, count: int, num_words: int = 204) -> tuple[list[str], list[str]]:
    """`count` pairs of exactly this similarity, up to the resolution of 200 n-grams."""
    rng = random.Random(count)
    texts = [text_of(rng, num_words) for _ in range(count)]
    variants = [variant(rng, text, wanted) for text in texts]
    assert jaccard(texts[0], variants[0]) == pytest.approx(wanted, abs=0.003)
    return texts, variants


def near_duplicates_of(texts: list[str], threshold: float, parts: int = 1) -> near_duplicates.Duplicates:
    kept = packed(signatures(texts))
    records = np.arange(len(texts))
    pairs = []
    for hashes in bands(kept, threshold).T:
        for part in range(parts):
            mine = hashes % np.uint64(parts) == part
            pairs.append(pairs_of_band(hashes[mine], records[mine]))
    found = unique_pairs(pairs)
    return select_duplicates(found, similarity(kept[found[:, 0]], kept[found[:, 1]]), threshold)


def greedy(num_records: int, similarities: dict[tuple[int, int], float], threshold: float) -> dict[int, int]:
    """Each dropped record and the record kept instead, by comparing it with every earlier record in order."""
    stays: dict[int, int] = {}
    for later in range(num_records):
        near = [
            (-similarities[earlier, later], earlier)
            for earlier in range(later)
            if earlier not in stays and similarities.get((earlier, later), 0) >= threshold
        ]
        if near:
            stays[later] = min(near)[1]
    return stays


@pytest.mark.parametrize("text", [*TEXTS, "a b c d", "a b c d e", "word " * 50])
def test_a_signature_equals_its_definition(text):
    made = signatures([text])
    assert made.dtype == np.uint32 and made.shape == (1, SIGNATURE_SIZE)
    assert made[0].tolist() == signature(text)


def test_stored_signatures_do_not_change():
    """Another value here invalidates all stored signatures: raise the code version of the stage."""
    made = signatures(TEXTS)
    assert made[:, :2].tolist() == GOLDEN_SIGNATURES
    assert packed(made)[:, :6].tolist() == GOLDEN_PACKED
    assert bands(packed(made), 0.8)[0, :2].tolist() == GOLDEN_BANDS


def test_every_process_gives_the_same_signatures(run_python):
    code = (
        "import hashlib; from bert_pipeline.data.corpus.near_duplicates import *; "
        f"kept = packed(signatures({TEXTS!r})); "
        "print(hashlib.sha256(kept.tobytes() + bands(kept, 0.7).tobytes()).hexdigest())"
    )
    kept = packed(signatures(TEXTS))
    expected = hashlib.sha256(kept.tobytes() + bands(kept, 0.7).tobytes()).hexdigest()
    for seed in ("0", "4242"):
        finished = run_python("-c", code, PYTHONHASHSEED=seed)
        assert finished.stdout.strip() == expected, finished.stderr


@given(st.lists(st.text(st.characters(codec=None), max_size=60), min_size=1, max_size=8), st.randoms())
@settings(max_examples=100)
def test_a_signature_is_a_function_of_the_words_alone(texts, rng):
    made = signatures(texts)
    order = rng.sample(range(len(texts)), len(texts))
    assert (signatures([texts[n] for n in order]) == made[order]).all()
    assert (np.concatenate([signatures([text]) for text in texts]) == made).all()
    respelled = [" -- ".join(words_of(text)) for text in texts]
    assert (signatures(respelled) == made).all()


def test_case_accents_and_text_between_words_do_not_count():
    text = TEXTS[0]
    plain = "the β blocker 10 mg kg was given twice THE Sjogren s patients did well"
    others = [text.upper(), unicodedata.normalize("NFD", text), plain, f"«{text}»\n"]
    assert (signatures(others) == signatures([text])).all()
    assert not (signatures([text.replace("twice", "once")]) == signatures([text])).all()


def test_short_texts_are_one_ngram_and_texts_without_words_are_alike():
    one, other, longer, repeated = packed(signatures(["Not available.", "Not given.", "Not available now", "a a a"]))
    assert similarity(one[None], packed(signatures(["[not AVAILABLE]"]))).tolist() == [1.0]
    for text in (other, longer, repeated):
        assert similarity(one[None], text[None])[0] < 0.1
    blank = packed(signatures(["", "?!", "\x00 \ud800"]))
    assert (blank == blank[0]).all() and similarity(blank[:1], one[None])[0] < 0.1
    assert signatures([]).shape == (0, SIGNATURE_SIZE)


@pytest.mark.parametrize("wanted", [0.0, 0.3, 0.6, 0.8, 0.95])
def test_the_estimate_has_the_expected_mean_and_spread(wanted):
    """Over 500 pairs: sqrt(s (1 - s) / 128) for full signatures, and hardly more for packed ones."""
    texts, variants = planted(wanted, 500)
    a, b = signatures(texts), signatures(variants)
    deviation = np.sqrt(wanted * (1 - wanted) / SIGNATURE_SIZE)
    for estimates in ((a == b).mean(axis=1), similarity(packed(a), packed(b))):
        error = max(deviation, 0.01)
        assert abs(estimates.mean() - wanted) < 4 * error / np.sqrt(500) + 0.003
        assert estimates.std() < 1.15 * error
        assert wanted == 0 or estimates.std() > 0.85 * deviation
    assert similarity(packed(a), packed(a)).min() == 1.0


def test_bytes_that_are_equal_by_chance_do_not_count():
    """One in 256: (equal - 1 / 256) / (1 - 1 / 256), at least 0."""
    numbers = np.arange(129)
    a = np.zeros((129, 128), np.uint8)
    b = (np.arange(128) >= numbers[:, None]).astype(np.uint8)
    expected = np.maximum((256 * numbers / 128 - 1) / 255, 0)
    made = similarity(a, b)
    assert made.dtype == np.float32 and made[0] == 0 and made[-1] == 1
    np.testing.assert_allclose(made, expected, rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_num_rows_is_the_most_that_gives_a_pair_at_the_threshold_its_probability(threshold):
    def chance(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (128 // rows)

    rows = num_rows(threshold)
    assert chance(rows) >= 0.95
    assert all(chance(more) < 0.95 for more in range(rows + 1, 129))
    assert bands(packed(signatures(TEXTS)), threshold).shape == (4, 128 // rows)


@pytest.mark.parametrize("threshold", [0.0, 0.01, 1.01, float("nan"), -1.0])
def test_a_threshold_out_of_range_is_an_error(threshold):
    with pytest.raises(ValueError, match=f"similarity of {threshold:g}; remedy: use a threshold of 0.05 to 1"):
        num_rows(threshold)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_a_pair_at_the_threshold_shares_a_band(threshold):
    texts, variants = planted(threshold, 600)
    a, b = (bands(packed(signatures(each)), threshold) for each in (texts, variants))
    expected = 1 - (1 - threshold ** num_rows(threshold)) ** a.shape[1]
    assert (a == b).any(axis=1).mean() > expected - 4 * np.sqrt(expected * (1 - expected) / 600)
    assert not (a == np.roll(b, 1, axis=0)).any(), "pairs of nothing in common"


@given(st.lists(st.integers(0, 6), max_size=60), st.integers(1, 4), st.integers(1, 5), st.integers(0, 60))
def test_pairs_of_a_band_equal_those_found_with_a_dictionary(numbers, bucket, parts, size):
    hashes = np.array(numbers, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    records = np.arange(len(numbers)) * 3 + 5
    buckets: dict[int, list[int]] = {}
    expected = set()
    for number, record in zip(numbers, records.tolist(), strict=True):
        held = buckets.setdefault(number, [])
        expected |= {(earlier, record) for earlier in held[:bucket]}
        held.append(record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "BUCKET", bucket)
        pairs = pairs_of_band(hashes, records)
        in_parts = [pairs_of_band(hashes[mine], records[mine]) for mine in masks(hashes, parts)]
        before = pairs_of_band(hashes[:size], records[:size])
    assert pairs.shape == (len(expected), 2) and pairs.dtype == np.int64
    assert set(map(tuple, pairs.tolist())) == expected
    assert unique_pairs(in_parts).tolist() == unique_pairs([pairs]).tolist()
    ends = records[size - 1] if 0 < size <= len(records) else -1 if not size else np.inf
    assert unique_pairs([before]).tolist() == [pair for pair in unique_pairs([pairs]).tolist() if pair[1] <= ends]


def masks(hashes: np.ndarray, parts: int) -> list[np.ndarray]:
    return [hashes % np.uint64(parts) == part for part in range(parts)]


def test_pairs_are_unique_and_sorted():
    pairs = [np.array([[5, 9], [2, 4]]), np.empty((0, 2), np.int64), np.array([[3, 9], [5, 9], [2**31 - 2, 2**31 - 1]])]
    assert unique_pairs(pairs).tolist() == [[2, 4], [3, 9], [5, 9], [2**31 - 2, 2**31 - 1]]
    assert unique_pairs([]).shape == (0, 2)


@given(st.integers(1, 12), st.data())
@settings(max_examples=300)
def test_dropped_records_equal_those_of_the_slow_greedy(num_records, data):
    every = list(combinations(range(num_records), 2))
    some = data.draw(st.lists(st.sampled_from(every), unique=True)) if every else []
    values = data.draw(st.lists(st.sampled_from([0.2, 0.7, 0.75, 0.9, 1.0]), min_size=len(some), max_size=len(some)))
    pairs = np.array(some, np.int64).reshape(-1, 2)
    found = select_duplicates(pairs * 7, np.array(values, np.float32), 0.7)
    expected = greedy(num_records, dict(zip(some, values, strict=True)), 0.7)
    assert dict(zip((found.records // 7).tolist(), (found.stays // 7).tolist(), strict=True)) == expected
    assert (np.diff(found.records) > 0).all()
    given_values = dict(zip(some, values, strict=True))
    for record, stays, value in zip(*found, strict=True):
        assert value == np.float32(given_values[stays // 7, record // 7])


def crowd(rng: random.Random) -> list[str]:
    """Documents, some of them variants of others or of variants, with similarities well above or well below 0.8."""
    texts = [text_of(rng, rng.randrange(150, 250)) for _ in range(150)]
    for _ in range(150):
        texts.append(variant(rng, rng.choice(texts), rng.choice([0.3, 0.5, 0.94, 0.97])))
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("seed", range(3))
def test_dropped_documents_equal_those_by_exact_similarity(seed):
    """Documents in a pair near the threshold are excluded, because the estimate has an error (see SIGNATURE_SIZE)."""
    texts = crowd(random.Random(seed))
    grams = [shingles(text) for text in texts]
    exact = {
        (a, b): len(grams[a] & grams[b]) / len(grams[a] | grams[b])
        for a, b in combinations(range(len(texts)), 2)
        if grams[a] & grams[b]
    }
    unsure = {record for pair, value in exact.items() if 0.65 < value < 0.93 for record in pair}
    sure = [n for n in range(len(texts)) if n not in unsure]
    number = {record: n for n, record in enumerate(sure)}
    kept = {(number[a], number[b]): value for (a, b), value in exact.items() if a in number and b in number}
    expected = greedy(len(sure), kept, 0.8)
    found = near_duplicates_of([texts[n] for n in sure], 0.8)
    assert len(expected) > 20
    assert found.records.tolist() == sorted(expected)
    for record, stays in zip(found.records.tolist(), found.stays.tolist(), strict=True):
        assert kept[stays, record] > 0.8 and stays not in expected


def test_later_documents_and_the_number_of_parts_change_no_decision():
    texts = crowd(random.Random(9))
    whole = near_duplicates_of(texts, 0.7)
    for size in (1, 40, 150, 299):
        before = near_duplicates_of(texts[:size], 0.7)
        of_them = whole.records < size
        for column, expected in zip(before, whole, strict=True):
            assert column.tolist() == expected[of_them].tolist()
    in_parts = near_duplicates_of(texts, 0.7, parts=5)
    for column, expected in zip(in_parts, whole, strict=True):
        assert column.tolist() == expected.tolist()


def test_a_chain_of_small_changes_keeps_every_second_document():
    """Each document is similar only to the one before and the one after it."""
    rng = random.Random(1)
    chain = [text_of(rng, 204)]
    for step in range(1, 8):
        words = chain[-1].split()
        words[(step - 1) * 20 : step * 20] = text_of(rng, 20).split()
        chain.append(" ".join(words))
    assert all(jaccard(chain[n], chain[n + 1]) > 0.77 and jaccard(chain[n], chain[n + 2]) < 0.67 for n in range(6))
    found = near_duplicates_of(chain, 0.7)
    assert found.records.tolist() == [1, 3, 5, 7] and found.stays.tolist() == [0, 2, 4, 6]


def test_a_thousand_equal_documents_do_not_give_a_million_pairs():
    texts = ["The same words stand in each and every one of these."] * 1000
    kept = packed(signatures([*texts, "These words are others, and nobody else has them."]))
    hashes = bands(kept, 0.8)[:, 0]
    assert len(pairs_of_band(hashes, np.arange(1001))) < near_duplicates.BUCKET * 1000
    found = near_duplicates_of([*texts, "These words are others, and nobody else has them."], 0.8)
    assert found.records.tolist() == list(range(1, 1000)) and set(found.stays.tolist()) == {0}


@pytest.mark.parametrize("texts", [[], ["alone in the world of texts"]])
def test_no_document_or_a_single_one_has_no_duplicate(texts):
    assert [len(column) for column in near_duplicates_of(texts, 0.8)] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
def test_dropped_real_abstracts_are_near_duplicates_and_planted_ones_are_dropped():
    with gzip.open(Path(os.environ["BERT_PIPELINE_DATA"], "corpus", "pubmed-abstracts.jsonl.gz"), "rt") as lines:
        texts = [" ".join(json.loads(line)[field] for field in ("title", "text")) for line in lines]
    rng, num_real = random.Random(1), len(texts)
    long = [text for text in texts if len(text.split()) > 100]
    texts += [variant(rng, text, 0.95) for text in rng.sample(long, 500)]
    found = near_duplicates_of(texts, 0.8)
    real = [(stays, record) for record, stays, _ in zip(*found, strict=True) if record < num_real]
    assert len(real) > 100
    assert min(jaccard(texts[stays], texts[record]) for stays, record in real) > 0.65
    assert found.records[len(real) :].tolist() == list(range(num_real, num_real + 500))
