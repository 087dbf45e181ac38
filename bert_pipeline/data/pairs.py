"""Next-sentence pairs: from the tokens of a shard to rows of token ids.

The rules follow google-research/bert, create_pretraining_data.py (create_instances_from_document,
truncate_seq_pair), with two deliberate changes: the random document is drawn uniformly from the other documents of the
shard, never the current one; and every draw is a function of (seed, pass, shard, document).

A and B are contiguous spans of the shard's tokens. `plan_pairs` decides each pair as four offsets and a label, and
`write_rows` copies the tokens.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from bert_pipeline.core.randomness import HELDOUT, PAIRS, below, happens, open_stream
from bert_pipeline.formats.pairs import IGNORE_INDEX, PairShard
from bert_pipeline.formats.tokenizer import CLS_ID, SEP_ID
from bert_pipeline.recipe import NspRecipe

FOLLOWS, RANDOM = 0, 1
"""The next-sentence label; with objective "sop", 1 means swapped."""
_NSP, _SOP, _NONE = range(3)


@dataclass(frozen=True)
class TokenizedShard:
    """The documents of a shard as flat arrays."""

    input_ids: np.ndarray  # (tokens,) uint16 or uint32
    sentence_offsets: np.ndarray  # (sentences + 1,) int64: sentence s is input_ids[offsets[s]:offsets[s + 1]]
    document_offsets: np.ndarray  # (documents + 1,) int64: document d is sentences offsets[d]:offsets[d + 1]


@dataclass(frozen=True)
class PairPlan:
    """The pairs of one pass over a shard, as spans of its tokens."""

    spans: np.ndarray  # (rows, 4) int64: start of A, end of A, start of B, end of B
    labels: np.ndarray  # (rows,) int8
    forced: np.ndarray  # (rows,) bool: random because the chunk has a single sentence
    truncated: np.ndarray  # (rows,) bool


def plan_pairs(
    shard: TokenizedShard,
    is_continuation: np.ndarray,
    section: NspRecipe,
    max_seq_length: int,
    split: str,
    pass_number: int,
    shard_number: int,
) -> PairPlan:
    """Decide every pair of one pass. `is_continuation`: (vocabulary,) bool, True for the `##` pieces."""
    objective = ("nsp", "sop", "none").index(section.objective)
    spans, labels, forced, truncated = _plan(
        shard.sentence_offsets,
        shard.document_offsets,
        is_continuation[shard.input_ids],
        max_seq_length - (2 if objective == _NONE else 3),
        objective,
        section.short_seq_prob,
        section.target_draw == "example",
        section.nsp_prob,
        section.balance,
        section.truncation == "longest_first",
        section.truncate_at_word_starts,
        section.seed,
        PAIRS + (HELDOUT if split == "heldout" else 0),
        pass_number,
        shard_number,
    )
    return PairPlan(spans, labels, forced, truncated)


@njit(cache=True)
def _plan(
    sentence_offsets,
    document_offsets,
    continues,
    max_num_tokens,
    objective,
    short_seq_prob,
    target_per_example,
    nsp_prob,
    balance,
    longest_first,
    at_word_starts,
    seed,
    what,
    pass_number,
    shard_number,
):
    num_documents = len(document_offsets) - 1
    most_rows = len(sentence_offsets) - 1  # every row consumes at least one sentence
    spans = np.empty((most_rows, 4), np.int64)
    labels = np.empty(most_rows, np.int8)
    forced = np.zeros(most_rows, np.bool_)
    truncated = np.zeros(most_rows, np.bool_)
    rows = 0
    surplus = 0  # forced random pairs minus twice the free random pairs that were turned into real ones
    stream = np.zeros(11, np.uint32)
    for document in range(num_documents):
        open_stream(stream, seed, what, pass_number, shard_number, document)
        target = _draw_target(stream, max_num_tokens, short_seq_prob)
        end = document_offsets[document + 1]
        first = document_offsets[document]  # first sentence of the chunk
        i = first
        while i < end:
            i += 1
            chunk_length = sentence_offsets[i] - sentence_offsets[first]
            if objective == _NONE:
                fits = i < end and sentence_offsets[i + 1] - sentence_offsets[first] <= max_num_tokens
                if fits and chunk_length < target:
                    continue
            elif i < end and chunk_length < target:
                continue

            n = i - first
            a_begin, b_begin, b_end = sentence_offsets[first], sentence_offsets[i], sentence_offsets[i]
            a_end = b_begin
            label = FOLLOWS
            if objective == _NONE:
                label = IGNORE_INDEX
            elif objective == _SOP:
                if n == 1:  # no order to predict
                    first = i
                    continue
                a_end = b_begin = sentence_offsets[first + 1 + below(stream, n - 1)]
                if happens(stream, 0.5):
                    a_begin, a_end, b_begin, b_end = b_begin, b_end, a_begin, a_end
                    label = RANDOM
            else:
                num_a = 1 if n == 1 else 1 + below(stream, n - 1)
                a_end = b_begin = sentence_offsets[first + num_a]
                random_next = n == 1 or happens(stream, nsp_prob)
                if balance and n == 1:
                    surplus += 1
                elif balance and random_next and surplus >= 2:  # turning one into a real pair shifts the balance by two
                    random_next = False
                    surplus -= 2
                if random_next:
                    label = RANDOM
                    forced[rows] = n == 1
                    other = below(stream, num_documents - 1)
                    other += other >= document
                    sentence = document_offsets[other] + below(
                        stream, document_offsets[other + 1] - document_offsets[other]
                    )
                    b_begin = sentence_offsets[sentence]
                    b_end = sentence_offsets[sentence + 1]
                    while b_end - b_begin < target - (a_end - a_begin) and sentence + 1 < document_offsets[other + 1]:
                        sentence += 1
                        b_end = sentence_offsets[sentence + 1]
                    i = first + num_a  # return the unused sentences to the document
            span = spans[rows]
            span[0], span[1], span[2], span[3] = a_begin, a_end, b_begin, b_end
            truncated[rows] = _truncate(span, continues, max_num_tokens, longest_first, at_word_starts, stream)
            labels[rows] = label
            rows += 1
            first = i
            if target_per_example and i < end:
                target = _draw_target(stream, max_num_tokens, short_seq_prob)
    return spans[:rows], labels[:rows], forced[:rows], truncated[:rows]


@njit(cache=True)
def _draw_target(stream, max_num_tokens, short_seq_prob):
    if happens(stream, short_seq_prob):
        return 2 + below(stream, max_num_tokens - 1)
    return max_num_tokens


@njit(cache=True)
def _truncate(span, continues, max_num_tokens, longest_first, at_word_starts, stream):
    """Truncate A = span[0]:span[1] and B = span[2]:span[3] to max_num_tokens in total; neither becomes empty."""
    truncated = False
    while span[1] - span[0] + span[3] - span[2] > max_num_tokens:
        truncated = True
        length_a, length_b = span[1] - span[0], span[3] - span[2]
        if length_b == 0:  # objective "none": a single segment loses its end
            cut_a, cut_front = True, False
        elif longest_first:
            cut_a, cut_front = length_a > length_b, happens(stream, 0.5)
        else:
            cut_a, cut_front = happens(stream, 0.5), False
            if length_a == 1:
                cut_a = False
            elif length_b == 1:
                cut_a = True
        k = 0 if cut_a else 2
        begin, end = span[k], span[k + 1]
        if cut_front:
            begin += 1
            while at_word_starts and begin < end and continues[begin]:
                begin += 1
        else:
            end -= 1
            while at_word_starts and end > begin and continues[end]:
                end -= 1
        if begin < end:
            span[k], span[k + 1] = begin, end
        else:  # the segment is one long word: cut its end
            span[k + 1] -= 1
    return truncated


def write_rows(shard: TokenizedShard, plan: PairPlan) -> PairShard:
    """Copy the planned pairs into rows: [CLS] A [SEP] B [SEP], or [CLS] A [SEP] if there is no B."""
    length_a = plan.spans[:, 1] - plan.spans[:, 0]
    length_b = plan.spans[:, 3] - plan.spans[:, 2]
    offsets = np.concatenate([[0], np.cumsum(length_a + length_b + 2 + (length_b > 0))]).astype(np.int32)
    input_ids = np.empty(offsets[-1], shard.input_ids.dtype)
    _copy(shard.input_ids, plan.spans, offsets, input_ids)
    return PairShard(input_ids, offsets, length_a.astype(np.uint16), plan.labels)


@njit(cache=True)
def _copy(tokens, spans, offsets, input_ids):
    for row in range(len(spans)):
        place = offsets[row]
        input_ids[place] = CLS_ID
        place += 1
        for k in (0, 2):
            begin, end = spans[row, k], spans[row, k + 1]
            if end == begin:
                continue
            input_ids[place : place + end - begin] = tokens[begin:end]
            place += end - begin
            input_ids[place] = SEP_ID
            place += 1
