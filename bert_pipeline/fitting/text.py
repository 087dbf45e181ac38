"""What a survey says about a text: its size, its languages, the length of its documents, and near duplicates."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from bert_pipeline.data.corpus.language import language_of
from bert_pipeline.data.corpus.near_duplicates import duplicates_among
from bert_pipeline.data.corpus.sentences import split_sentences
from bert_pipeline.planning.survey import Survey

SAMPLED = 1_000
"""At most so many documents have their language and sentences counted."""
WITHOUT_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
SIMILARITY = 0.8
"""Jaccard similarity of word 5-grams from which two documents count as near duplicates."""


@dataclass(frozen=True)
class Text:
    words: float
    """Of the whole source, estimated from the sample; see `_num_words`."""
    documents: float
    words_per_document: float
    """Median of the sample."""
    languages: dict[str, float]
    """Share of the documents by language code, the most frequent first; "" where it is uncertain."""
    one_sentence: float
    """Share of the documents that are a single sentence."""
    near_duplicates: float
    """Share of the sample that repeats an earlier document of the sample. The text has at least this share."""
    characters: str
    """Some documents of the sample, one after the other."""


def describe(found: Survey) -> Text:
    documents = [" ".join(document.texts) for document in found.sample]
    lengths = np.array(list(map(_num_words, documents)))
    every = -(-len(documents) // SAMPLED)  # spread over all files, which the sample follows
    some = documents[::every]
    languages = Counter(map(language_of, some))
    sentences = [sum(len(split_sentences(part)) for part in document.texts) for document in found.sample[::every]]
    whole = sum(found.documents.values()) / found.share_read
    return Text(
        words=float(lengths.mean()) * whole,
        documents=whole,
        words_per_document=float(np.median(lengths)),
        languages={code: count / len(some) for code, count in languages.most_common()},
        one_sentence=sum(count <= 1 for count in sentences) / len(sentences),
        near_duplicates=len(duplicates_among(documents, SIMILARITY).records) / len(documents),
        characters="\n".join(some),
    )


def _num_words(text: str) -> int:
    """Words between blanks, and half of the letters of scripts without blanks."""
    return len(text.split()) + len(WITHOUT_BLANKS.findall(text)) // 2
