"""The slow, literal oracle: create_instances_from_document, truncate_seq_pair and
create_masked_lm_predictions as google-research/bert's algorithm describes them, token by token over Python lists.

The random generator is passed in. `Draws` answers Python's `random.Random` calls from the same stream
that the compiled builders read, in the order in which the algorithm asks.
"""

from bert_pipeline.core.randomness import below, happens, new_stream


class Draws:
    def __init__(self, *place):
        self.stream = new_stream(*place)

    def chance(self, probability):
        return bool(happens(self.stream, probability))

    def randint(self, low, high):
        return low + int(below(self.stream, high - low + 1))

    def another(self, count, own):
        """An index in [0, count) other than `own`, as if drawn again until it differs."""
        drawn = int(below(self.stream, count - 1))
        return drawn + 1 if drawn >= own else drawn


def pairs_of_document(documents, index, *, max_seq_length, short_seq_prob, nsp_prob, per_example, truncate, rng):
    """(A, B, label, forced) of one document; documents are lists of sentences, sentences lists of ids."""
    document = documents[index]
    max_num_tokens = max_seq_length - 3

    def draw_target():
        return rng.randint(2, max_num_tokens) if rng.chance(short_seq_prob) else max_num_tokens

    target_seq_length = draw_target()
    instances, current_chunk, current_length, i = [], [], 0, 0
    while i < len(document):
        segment = document[i]
        current_chunk.append(segment)
        current_length += len(segment)
        if i == len(document) - 1 or current_length >= target_seq_length:
            if current_chunk:
                a_end = 1
                if len(current_chunk) >= 2:
                    a_end = rng.randint(1, len(current_chunk) - 1)
                tokens_a = [token for sentence in current_chunk[:a_end] for token in sentence]
                tokens_b = []
                forced = len(current_chunk) == 1
                if forced or rng.chance(nsp_prob):
                    is_random_next = True
                    target_b_length = target_seq_length - len(tokens_a)
                    random_document = documents[rng.another(len(documents), index)]
                    random_start = rng.randint(0, len(random_document) - 1)
                    for j in range(random_start, len(random_document)):
                        tokens_b.extend(random_document[j])
                        if len(tokens_b) >= target_b_length:
                            break
                    i -= len(current_chunk) - a_end
                else:
                    is_random_next = False
                    tokens_b = [token for sentence in current_chunk[a_end:] for token in sentence]
                truncate(tokens_a, tokens_b, max_num_tokens, rng)
                instances.append((tokens_a, tokens_b, int(is_random_next), forced))
            current_chunk, current_length = [], 0
            if per_example and i < len(document) - 1:
                target_seq_length = draw_target()
        i += 1
    return instances


def truncate_longest_first(tokens_a, tokens_b, max_num_tokens, rng):
    while len(tokens_a) + len(tokens_b) > max_num_tokens:
        trunc_tokens = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
        if rng.chance(0.5):
            del trunc_tokens[0]
        else:
            trunc_tokens.pop()


def truncate_random_segment(tokens_a, tokens_b, max_num_tokens, rng):
    while len(tokens_a) + len(tokens_b) > max_num_tokens:
        picked = tokens_a if rng.chance(0.5) else tokens_b
        if len(picked) == 1:
            picked = tokens_b if picked is tokens_a else tokens_a
        picked.pop()


def masked_lm(tokens, *, is_continuation, specials, masked_lm_prob, max_predictions, whole_words, per_word, mask_id,
              vocab_size, rng):  # fmt: skip
    """(position, token id after masking) in the order of the row."""
    cand_indexes = []
    for i, token in enumerate(tokens):
        if token in specials:
            continue
        if whole_words and cand_indexes and cand_indexes[-1][-1] == i - 1 and is_continuation[token]:
            cand_indexes[-1].append(i)
        else:
            cand_indexes.append([i])
    num_to_predict = min(max_predictions, max(1, round(len(tokens) * masked_lm_prob)))
    masked = {}
    remaining = list(cand_indexes)
    while remaining and len(masked) < num_to_predict:
        # Taking a random one of those that remain, the first of them moving to its place, is a shuffle.
        place = rng.randint(0, len(remaining) - 1)
        remaining[0], remaining[place] = remaining[place], remaining[0]
        index_set = remaining.pop(0)
        if len(masked) + len(index_set) > num_to_predict:
            continue
        decision = None
        for index in index_set:
            if decision is None or not per_word:
                if rng.chance(0.8):
                    decision = "mask"
                elif rng.chance(0.5):
                    decision = "keep"
                else:
                    decision = "random"
            if decision == "mask":
                masked[index] = mask_id
            elif decision == "keep":
                masked[index] = tokens[index]
            else:
                masked[index] = len(specials_all(specials)) + rng.randint(0, vocab_size - 6)
    return sorted(masked.items())


def specials_all(specials):
    """[PAD] [UNK] [CLS] [SEP] [MASK] have the first ids; [UNK] and [MASK] are candidates, but never drawn."""
    return range(5)
