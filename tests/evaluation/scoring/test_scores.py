"""Every metric against an independent implementation: seqeval, scikit-learn, scipy, and the definitions themselves."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as seqeval_default
from seqeval.metrics.v1 import precision_recall_fscore_support as seqeval_strict
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from bert_pipeline.evaluation.scoring import scores as scores_module
from bert_pipeline.evaluation.scoring.scores import (
    entities,
    gold_labels,
    interval,
    resampled_examples,
    score_of,
    scores,
    statistics,
)
from bert_pipeline.evaluation.tasks.readers import Sentence, Text
from bert_pipeline.evaluation.tasks.task import Task


def task(kind, labels=(), unscored=()):
    given = {"score_range": (0.0, 4.0)} if kind == "similarity" else {"labels": labels, "unscored_labels": unscored}
    return Task(name=f"small-{kind}", title="", kind=kind, version="1", terms="", folder="small", **given)


PLAIN, TYPED = task("ner"), task("ner", ("gene", "cell-line"))
PICO = task("pico", ("PAR", "INT", "OUT"))
RELATION = task("relation", ("CPR:3", "CPR:4", "CPR:5", "false"), ("false",))
DOCUMENTS = task("documents", ("angiogenesis", "invasion", "immortality"))
QA = task("qa", ("yes", "no", "maybe"))
SIMILARITY = task("similarity")


def same(ours, theirs):
    return abs(ours - float(theirs)) <= 1e-12


# Entities


def slow_entities(tags, strict):
    """Reference implementation: test every span of words against the definition of an entity."""
    kinds = {tag[2:] for tag in tags}
    whole = ["O", *tags, "O"]

    def is_entity(start, end, kind):
        before, first, inner, after = whole[start], tags[start], tags[start + 1 : end], whole[end + 1]
        begin, inside = (f"{mark}-{kind}" if kind else mark for mark in "BI")
        begins = first == begin or (not strict and first == inside and before not in (begin, inside))
        return begins and set(inner) <= {inside} and after != inside

    return {
        (kind, start, end)
        for start, end in itertools.combinations(range(len(tags) + 1), 2)
        for kind in kinds
        if is_entity(start, end, kind)
    }


@given(st.lists(st.sampled_from(TYPED.tags), max_size=9), st.booleans())
def test_entities_are_those_of_the_definition(tags, strict):
    assert entities(tags, strict) == slow_entities(tags, strict)


@given(st.lists(st.sampled_from("BIO"), max_size=9), st.booleans())
def test_entities_without_a_type_are_those_of_the_definition(tags, strict):
    assert entities(tags, strict) == slow_entities(tags, strict)


def seqeval_scores(gold, predicted):
    # Without a type in each tag, seqeval's strict mode takes the letter itself for the type.
    gold, predicted = (
        [[f"{tag}-entity" if tag in ("B", "I") else tag for tag in tags] for tags in side] for side in (gold, predicted)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        default = seqeval_default(gold, predicted, average="micro", zero_division=0)
        strict = seqeval_strict(gold, predicted, average="micro", zero_division=0, scheme=IOB2)
    names = ("precision", "recall", "score", "strict_precision", "strict_recall", "strict_f1")
    return dict(zip(names, (*default[:3], *strict[:3]), strict=True))


def assert_as_seqeval(ner, gold, predicted):
    ours = scores(ner, gold, predicted)
    for name, value in seqeval_scores(gold, predicted).items():
        assert same(ours[name], value), (name, gold, predicted)


def random_tags(rng, ner, length):
    """Varied sequences: mostly O, mostly entities, ill-formed, all of one tag."""
    weights = rng.dirichlet(np.full(len(ner.tags), 0.4))
    return [str(tag) for tag in rng.choice(ner.tags, size=length, p=weights)]


@pytest.mark.parametrize("ner", [PLAIN, TYPED], ids=["plain", "typed"])
def test_entity_scores_are_seqevals_on_random_sequences(ner):
    rng = np.random.default_rng(5)
    for _ in range(150):
        lengths = rng.integers(0, 12, size=rng.integers(1, 12))
        gold = [random_tags(rng, ner, length) for length in lengths]
        predicted = [
            [str(rng.choice(ner.tags)) if rng.random() < 0.3 else tag for tag in tags]
            if rng.random() < 0.7
            else random_tags(rng, ner, len(tags))
            for tags in gold
        ]
        assert_as_seqeval(ner, gold, predicted)


@st.composite
def tag_pairs(draw, tags):
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=5))
    return tuple([draw(st.lists(st.sampled_from(tags), min_size=n, max_size=n)) for n in lengths] for _ in range(2))


@given(tag_pairs(TYPED.tags))
def test_entity_scores_are_seqevals_on_typed_tags(pair):
    assert_as_seqeval(TYPED, *pair)


@given(tag_pairs(PLAIN.tags))
def test_entity_scores_are_seqevals_on_plain_tags(pair):
    assert_as_seqeval(PLAIN, *pair)


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [
        (["B I O"], ["I I O"]),  # I without B
        (["O O"], ["O O"]),  # nothing anywhere
        (["O O"], ["B I"]),  # nothing to find
        (["B I"], ["O O"]),  # nothing found
        (["B B B"], ["B B B"]),
        (["B B B"], ["B I I"]),
        (["I I I"], ["B I I"]),
        (["O B I", "I O"], ["O B I", "I O"]),  # entities at the end and the beginning of neighbours
        (["O B", "I O"], ["O B", "B O"]),
        (["B"], ["B"]),
        (["", "B"], ["", "I"]),
        ([""], [""]),
        (["B-gene I-gene"], ["B-gene I-cell-line"]),  # the type changes inside
        (["B-gene I-cell-line"], ["B-gene I-cell-line"]),
        (["I-gene I-cell-line I-gene"], ["B-gene B-cell-line I-gene"]),
        (["B-gene O I-gene"], ["B-gene I-gene I-gene"]),
    ],
)
def test_entity_scores_are_seqevals_on_adversarial_sequences(gold, predicted):
    gold, predicted = ([sentence.split() for sentence in side] for side in (gold, predicted))
    ner = TYPED if any("-" in tag for tags in (*gold, *predicted) for tag in tags) else PLAIN
    assert_as_seqeval(ner, gold, predicted)


def test_an_entity_counts_only_with_exact_span_and_type():
    found = scores(TYPED, [["B-gene", "I-gene", "O", "B-cell-line"]], [["B-gene", "O", "O", "B-cell-line"]])
    assert (found["precision"], found["recall"], found["score"]) == (0.5, 0.5, 0.5)
    assert (found["f1_gene"], found["f1_cell-line"]) == (0.0, 1.0)


def test_default_forgives_an_entity_that_begins_with_i_and_strict_does_not():
    found = scores(PLAIN, [["B", "I", "O"]], [["I", "I", "O"]])
    assert (found["score"], found["strict_f1"]) == (1.0, 0.0)


def test_words_that_were_cut_off_are_missed():
    gold = [["B", "O", "B", "I"]]
    assert scores(PLAIN, gold, [["B", "O", "O", "O"]])["recall"] == 0.5


# Words, classes, documents, questions


def words(rng, length, marks="I"):
    return [
        str(tag) for tag in rng.choice(["O", *(f"{mark}-{name}" for mark in marks for name in PICO.labels)], length)
    ]


def test_pico_is_the_mean_of_scikit_learns_f1_of_each_label_over_words():
    rng = np.random.default_rng(6)
    for _ in range(100):
        lengths = rng.integers(0, 9, size=rng.integers(1, 9))
        gold, predicted = [words(rng, n) for n in lengths], [words(rng, n, marks="BI") for n in lengths]
        flat_gold, flat_predicted = ([tag[2:] or "O" for tags in side for tag in tags] for side in (gold, predicted))
        found = scores(PICO, gold, predicted)
        if not flat_gold:
            assert set(found.values()) == {0.0}
            continue
        each = f1_score(flat_gold, flat_predicted, labels=PICO.labels, average=None, zero_division=0)
        assert same(found["score"], each.mean())
        assert all(same(found[f"f1_{name}"], f1) for name, f1 in zip(PICO.labels, each, strict=True))


@given(st.lists(st.tuples(st.sampled_from(RELATION.labels), st.sampled_from(RELATION.labels)), min_size=1, max_size=30))
def test_relation_scores_are_scikit_learns(pairs):
    gold, predicted = zip(*pairs, strict=True)
    found, scored = scores(RELATION, gold, predicted), list(RELATION.labels[:3])
    for name, metric in (("score", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert same(found[name], metric(gold, predicted, labels=scored, average="micro", zero_division=0))
    each = f1_score(gold, predicted, labels=scored, average=None, zero_division=0)
    assert same(found["macro_f1"], each.mean())
    assert all(same(found[f"f1_{name}"], f1) for name, f1 in zip(scored, each, strict=True))
    assert "f1_false" not in found


def test_with_one_scored_class_the_score_is_its_f1():
    gad = task("relation", ("0", "1"), ("0",))
    rng = np.random.default_rng(7)
    for _ in range(50):
        gold, predicted = rng.choice(["0", "1"], (2, 20)).tolist()
        assert same(scores(gad, gold, predicted)["score"], f1_score(gold, predicted, pos_label="1", zero_division=0))


CLASSES = st.frozensets(st.sampled_from(DOCUMENTS.labels))


@given(st.lists(st.tuples(CLASSES, CLASSES), min_size=1, max_size=20))
def test_document_scores_are_scikit_learns(pairs):
    gold, predicted = zip(*pairs, strict=True)
    found = scores(DOCUMENTS, gold, predicted)
    flags = [
        np.array([[name in label for name in DOCUMENTS.labels] for label in side], int) for side in (gold, predicted)
    ]
    for name, metric in (("score", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert same(found[name], metric(*flags, average="micro", zero_division=0))
    assert same(found["macro_f1"], f1_score(*flags, average="macro", zero_division=0))


@given(st.lists(st.tuples(st.sampled_from(QA.labels), st.sampled_from(QA.labels)), min_size=1, max_size=30))
def test_question_scores_are_scikit_learns(pairs):
    gold, predicted = zip(*pairs, strict=True)
    found = scores(QA, gold, predicted)
    assert same(found["score"], accuracy_score(gold, predicted))
    assert same(found["macro_f1"], f1_score(gold, predicted, labels=QA.labels, average="macro", zero_division=0))


# Correlation


def assert_as_scipy(gold, predicted):
    found = scores(SIMILARITY, gold, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pearson, spearman = stats.pearsonr(gold, predicted)[0], stats.spearmanr(gold, predicted)[0]
    assert same(found["score"], np.nan_to_num(pearson))
    assert same(found["spearman"], np.nan_to_num(spearman))
    assert found["mse"] == pytest.approx(np.mean((np.array(gold) - np.array(predicted)) ** 2), rel=1e-12)


@pytest.mark.parametrize("size", [2, 3, 20, 500])
def test_correlations_are_scipys(size):
    rng = np.random.default_rng(size)
    for _ in range(50):
        gold = rng.uniform(0, 4, size)
        assert_as_scipy(gold, gold + rng.normal(0, rng.choice([1e-3, 1, 100]), size))
        assert_as_scipy(gold, rng.normal(0, 1, size))
        assert_as_scipy(rng.integers(0, 5, size).astype(float), rng.integers(0, 3, size).astype(float))  # ties


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=2, max_size=20))
def test_correlations_are_scipys_on_few_values(pairs):
    gold, predicted = np.array(pairs, dtype=float).T
    assert_as_scipy(gold, predicted)


@given(
    st.lists(st.floats(-1e200, 1e200), min_size=1, max_size=12),
    st.floats(-1e200, 1e200),
)
def test_a_correlation_is_always_a_number(values, constant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for predicted in (values, values[::-1]):
            assert -1 <= score_of(SIMILARITY, statistics(SIMILARITY, values, predicted).sum(0)) <= 1
        constants = [constant] * len(values)
        assert score_of(SIMILARITY, statistics(SIMILARITY, values, constants).sum(0)) == 0, "a constant says nothing"


def test_a_correlation_does_not_depend_on_the_unit():
    gold, predicted = np.random.default_rng(14).normal(size=(2, 20))
    known = score_of(SIMILARITY, statistics(SIMILARITY, gold, predicted).sum(0))
    for unit in (1e-200, 1e-3, 1e200):
        assert same(score_of(SIMILARITY, statistics(SIMILARITY, gold, predicted * unit).sum(0)), known)


def test_a_resample_of_one_value_again_and_again_correlates_with_nothing():
    rng = np.random.default_rng(15)
    gold = rng.uniform(0, 4, 40)
    predicted = np.repeat(rng.normal(size=20), 2)
    rows = statistics(SIMILARITY, gold, predicted)
    for first in range(0, 40, 2):  # two scores, one prediction
        for times in range(1, 20):
            assert score_of(SIMILARITY, rows[first] * times + rows[first + 1] * 3) == 0


def test_a_large_offset_does_not_cancel_the_correlation():
    rng = np.random.default_rng(8)
    gold, noise = rng.normal(size=100), rng.normal(size=100)
    offset = 1e9
    shifted = gold + noise + offset
    assert scores(SIMILARITY, gold, shifted)["score"] == pytest.approx(
        stats.pearsonr(gold, shifted - offset)[0], abs=1e-12
    )


# Every kind


def random_labels(kind, size, rng):
    if kind is SIMILARITY:
        return rng.uniform(0, 4, size).tolist()
    if kind in (PLAIN, TYPED, PICO):
        return [[str(tag) for tag in rng.choice(kind.tags, 6)] for _ in range(size)]
    if kind is DOCUMENTS:
        return [frozenset(name for name in kind.labels if rng.random() < 0.4) for _ in range(size)]
    return [str(name) for name in rng.choice(kind.labels, size)]


KINDS = pytest.mark.parametrize(
    "kind", [PLAIN, TYPED, PICO, RELATION, DOCUMENTS, QA, SIMILARITY], ids=lambda kind: kind.kind
)


@KINDS
def test_the_score_is_a_function_of_sums_over_examples(kind):
    """Resampling relies on this: a weight counts as a repetition."""
    rng = np.random.default_rng(9)
    gold, predicted = random_labels(kind, 30, rng), random_labels(kind, 30, rng)
    weights = rng.integers(0, 4, size=(5, 30))
    resampled = score_of(kind, weights @ statistics(kind, gold, predicted))
    for n, times in enumerate(weights):
        repeated = np.repeat(np.arange(30), times)
        again = scores(kind, [gold[i] for i in repeated], [predicted[i] for i in repeated])
        assert same(resampled[n], again["score"])


@KINDS
def test_gold_itself_scores_one_and_no_examples_score_zero(kind):
    gold = random_labels(kind, 30, np.random.default_rng(10))
    found = scores(kind, gold, gold)
    assert all(
        value == pytest.approx(float(name != "mse"), abs=1e-12) for name, value in found.items() if "strict" not in name
    )
    assert set(scores(kind, [], []).values()) == {0.0}


@KINDS
def test_the_number_of_predictions_must_match(kind):
    gold = random_labels(kind, 3, np.random.default_rng(11))
    with pytest.raises(ValueError, match="2 predictions for 3 examples"):
        scores(kind, gold, gold[:2])


@pytest.mark.parametrize(
    ("kind", "gold", "predicted", "message"),
    [
        (RELATION, ["false", "CPR:3"], ["false", "CPR:9"], "predicted label of example 2 has 'CPR:9'"),
        (RELATION, ["DDI-None"], ["false"], "gold label of example 1 has 'DDI-None'"),
        (QA, ["yes"], ["Yes"], "predicted label of example 1 has 'Yes'"),
        (DOCUMENTS, [frozenset()], [frozenset(["growth"])], "predicted label of example 1 has 'growth'"),
        (PLAIN, [["O"], ["B", "X"]], [["O"], ["O", "O"]], "gold label of example 2 has 'X'"),
        (PLAIN, [["O"]], [["B-gene"]], "predicted label of example 1 has 'B-gene'"),
        (TYPED, [["B"]], [["O"]], "gold label of example 1 has 'B'"),
        (PICO, [["I-PAR"]], [["I-XXX"]], "predicted label of example 1 has 'I-XXX'"),
        (PLAIN, [["O"], ["O", "O"]], [["O"], ["O"]], "example 2 has 2 words, but 1 predicted tags"),
        (SIMILARITY, [1.0, float("nan")], [1.0, 2.0], "gold score of example 2 is nan"),
        (SIMILARITY, [1.0], [float("inf")], "predicted score of example 1 is inf"),
    ],
)
def test_invalid_labels_are_refused_with_number_and_value(kind, gold, predicted, message):
    with pytest.raises(ValueError, match=message):
        statistics(kind, gold, predicted)


def test_gold_labels_are_tags_or_labels():
    examples = [Sentence("1", ("a", "b"), ("O", "B")), Text("2", ("c",), "yes"), Text("3", ("d", "e"), 0.5)]
    assert gold_labels(examples) == [("O", "B"), "yes", 0.5]


# The interval


def answers(right, size):
    return statistics(QA, ["yes"] * size, ["yes"] * right + ["no"] * (size - right))


def test_the_interval_of_one_accuracy_is_the_binomials():
    low, high = interval(QA, [answers(140, 200)], seed=0)
    assert (low, high) == pytest.approx(stats.binom(200, 0.7).ppf([0.025, 0.975]) / 200, abs=0.0051)


def test_the_interval_is_that_of_all_resamples():
    """Four sentences, two runs: enumerates all 4^4 draws of sentences times 2^2 draws of runs."""
    gold = [["B", "B"], ["B", "O"], ["O", "O"], ["B", "I"]]
    predicted = [
        [["B", "B"], ["O", "O"], ["O", "B"], ["B", "I"]],
        [["B", "O"], ["B", "O"], ["O", "O"], ["B", "O"]],
    ]
    runs = [statistics(PLAIN, gold, tags) for tags in predicted]
    exact = np.array(
        [
            np.mean([score_of(PLAIN, runs[run][list(drawn)].sum(0)) for run in drawn_runs])
            for drawn in itertools.product(range(4), repeat=4)
            for drawn_runs in itertools.product(range(2), repeat=2)
        ]
    )
    for end, percentile in zip(interval(PLAIN, runs, seed=1), (0.025, 0.975), strict=True):
        assert (exact < end - 1e-9).mean() - 0.006 <= percentile <= (exact <= end + 1e-9).mean() + 0.006


def test_the_interval_covers_the_variance_over_seeds():
    good, bad = answers(100, 100), answers(0, 100)
    assert interval(QA, [good], seed=0) == (1.0, 1.0), "of one run only the examples can vary"
    assert interval(QA, [good, bad], seed=0) == (0.0, 1.0)


def test_the_interval_covers_the_truth(monkeypatch):
    """Simulates runs that vary and questions of different difficulty 200 times: covered in 95 % or slightly more."""
    monkeypatch.setattr(scores_module, "RESAMPLES", 1000)
    rng, covered = np.random.default_rng(12), 0
    for _ in range(200):
        difficulty = rng.normal(0, 1, 100)
        logits = difficulty + rng.normal(0, 0.5, (5, 1))
        right = rng.random((5, 100)) < 1 / (1 + np.exp(-logits))
        runs = [statistics(QA, ["yes"] * 100, np.where(run, "yes", "no").tolist()) for run in right]
        low, high = interval(QA, runs, seed=0)
        covered += low <= 0.5 <= high  # by symmetry of all that was drawn
    assert covered >= 180


def test_the_interval_is_a_function_of_the_seed():
    run = statistics(SIMILARITY, *np.random.default_rng(13).normal(size=(2, 30)))
    first, again, other = (interval(SIMILARITY, [run], seed) for seed in (1, 1, 2))
    assert first == again != other


def test_examples_are_drawn_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(scores_module, "WEIGHTS_AT_ONCE", 3000)
    parts = list(resampled_examples(7, np.random.default_rng(0)))
    assert max(part.size for part in parts) <= 3000 and sum(len(part) for part in parts) == 10_000
    weights = np.concatenate(parts)
    assert (weights.sum(1) == 7).all()
    assert weights.mean(0) == pytest.approx(np.ones(7), abs=0.05)
    assert weights.var(0) == pytest.approx(np.full(7, 6 / 7), abs=0.05), "of a multinomial: n p (1 - p)"


def test_the_interval_of_a_correlation_is_finite_where_a_resample_is_constant():
    low, high = interval(SIMILARITY, [statistics(SIMILARITY, [1.0, 2.0, 2.0], [0.1, 0.3, 0.2])], seed=0)
    assert -1 <= low <= high <= 1


def test_an_interval_without_runs_or_of_runs_on_different_examples_is_refused():
    with pytest.raises(ValueError, match="no run"):
        interval(QA, [], seed=0)
    with pytest.raises(ValueError, match="without examples"):
        interval(QA, [statistics(QA, [], [])], seed=0)
    with pytest.raises(ValueError, match="run 2 has another gold label for example 2"):
        interval(QA, [statistics(QA, ["yes", "no"], ["no", "no"]), statistics(QA, ["yes", "yes"], ["no", "no"])], 0)
    with pytest.raises(ValueError, match="run 2 has statistics of shape"):
        interval(QA, [answers(1, 2), answers(1, 3)], 0)
