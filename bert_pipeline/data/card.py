def vocabulary_growth(texts, max_words=2_000_000):
    return {"words": [], "distinct": []}


def write_data_card(out, facts, samples):
    pass
