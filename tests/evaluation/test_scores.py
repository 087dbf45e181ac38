import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.evaluation.scores import entity_scores


def spans(tags, *, strict):
    """The oracle, from the definitions: runs of (B or I) I*, of which strict wants those that begin with B."""
    found, start = set(), None
    for n, tag in enumerate([*tags, "O"]):
        if start is not None and tag != "I":
            found.add((start, n))
            start = None
        if tag == "B" or (tag == "I" and start is None):
            start = n
    return {(a, b) for a, b in found if tags[a] == "B"} if strict else found


def oracle(gold, predicted, *, strict):
    truth = {(n, *span) for n, tags in enumerate(gold) for span in spans(tags, strict=strict)}
    guess = {(n, *span) for n, tags in enumerate(predicted) for span in spans(tags, strict=strict)}
    right = len(truth & guess)
    precision, recall = right / max(len(guess), 1), right / max(len(truth), 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)


@st.composite
def gold_and_predicted(draw):
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    sequence = lambda n: st.lists(st.sampled_from("BIO"), min_size=n, max_size=n)  # noqa: E731
    return [draw(sequence(n)) for n in lengths], [draw(sequence(n)) for n in lengths]


@given(gold_and_predicted())
def test_scores_are_those_of_the_definition(pair):
    gold, predicted = pair
    scores = entity_scores(gold, predicted)
    assert [scores[f"{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(
        oracle(gold, predicted, strict=False)
    )
    assert [scores[f"strict_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(
        oracle(gold, predicted, strict=True)
    )


def test_an_entity_counts_only_whole():
    gold = [["O", "B", "I", "O", "B"]]
    scores = entity_scores(gold, [["O", "B", "O", "O", "B"]])
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0.5, 0.5, 0.5)


def test_default_forgives_an_entity_that_begins_with_i_and_strict_does_not():
    scores = entity_scores([["B", "I", "O"]], [["I", "I", "O"]])
    assert (scores["f1"], scores["strict_f1"]) == (1.0, 0.0)


def test_adjacent_entities_are_two():
    scores = entity_scores([["B", "B"]], [["B", "I"]])
    assert (scores["recall"], scores["f1"]) == (0.0, 0.0)


def test_predicting_nothing_scores_zero_without_a_warning(recwarn):
    assert set(entity_scores([["B", "I"]], [["O", "O"]]).values()) == {0.0}
    assert not recwarn.list
