import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.core.randomness import below, draw, happens, new_stream, permuted, philox

# The known answers of the Random123 library (Salmon et al. 2011), tests/kat_vectors, philox4x32 10.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    out = np.zeros(4, np.uint32)
    philox(np.array(counter, np.uint32), np.array(key, np.uint32), out)
    assert " ".join(f"{word:08x}" for word in out) == expected


def test_a_stream_depends_only_on_its_coordinates():
    first = [int(draw(s)) for s in [new_stream(7, 1, 2, 3, 4)] for _ in range(20)]
    again = [int(draw(s)) for s in [new_stream(7, 1, 2, 3, 4)] for _ in range(20)]
    assert first == again
    for other in [(8, 1, 2, 3, 4), (7, 0, 2, 3, 4), (7, 1, 0, 3, 4), (7, 1, 2, 0, 4), (7, 1, 2, 3, 0)]:
        assert [int(draw(s)) for s in [new_stream(*other)] for _ in range(20)] != first


def test_draws_are_uniform():
    stream = new_stream(1, 0)
    counts = np.bincount([below(stream, 7) for _ in range(70_000)], minlength=7)
    assert abs(counts - 10_000).max() < 5 * 100  # five standard deviations
    assert abs(sum(happens(stream, 0.15) for _ in range(100_000)) - 15_000) < 5 * 113
    assert not any(happens(stream, 0.0) for _ in range(1000))
    assert all(happens(stream, 1.0) for _ in range(1000))


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), number=st.integers(0, 1000))
def test_permuted_is_a_permutation(size, seed, number):
    assert sorted(permuted(np.arange(size), size, seed, number)) == list(range(size))


def test_any_part_of_a_permutation_can_be_computed_and_epochs_differ():
    whole = permuted(np.arange(1000), 1000, 5, 0)
    assert (permuted(np.arange(600, 700), 1000, 5, 0) == whole[600:700]).all()
    assert (permuted(np.arange(1000), 1000, 5, 1) != whole).mean() > 0.98
    assert (whole != np.arange(1000)).mean() > 0.98
    assert abs(np.corrcoef(whole, np.arange(1000))[0, 1]) < 0.1
