"""Entity-level scores of predicted tags: an entity counts where both its ends are right.

seqeval scores twice. By default it reads tags as conlleval does: an entity may begin with I. This is how
BLURB's figures are made. Strict takes IOB2 at its word: a run that does not begin with B is no entity.
"""

from collections.abc import Sequence

from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_precision_recall_fscore_support
from seqeval.scheme import IOB2

Tags = Sequence[Sequence[str]]
"""B, I or O for each word of each sentence."""


def entity_scores(gold: Tags, predicted: Tags) -> dict[str, float]:
    """Precision, recall and F1 over entities, default and strict, as fractions."""
    typed_gold, typed_predicted = _typed(gold), _typed(predicted)
    scores: dict[str, float] = {}
    for prefix, (precision, recall, f1, _) in {
        "": precision_recall_fscore_support(typed_gold, typed_predicted, average="micro", zero_division=0),
        "strict_": strict_precision_recall_fscore_support(
            typed_gold, typed_predicted, average="micro", zero_division=0, scheme=IOB2
        ),
    }.items():
        scores |= {f"{prefix}precision": precision, f"{prefix}recall": recall, f"{prefix}f1": f1}
    return {name: float(score) for name, score in scores.items()}


def _typed(tags: Tags) -> list[list[str]]:
    # seqeval wants a type in each tag: without one it takes the letter itself for the type.
    return [[tag if tag == "O" else f"{tag}-entity" for tag in sentence] for sentence in tags]
