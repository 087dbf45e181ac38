"""The trainer of the `tokenizers` library, for texts that are small enough for its 32-bit counts.

Its alphabet is counted and numbered beforehand, because it numbers continuation characters in the order of a
randomly seeded hash map.
"""

import string
import unicodedata
from collections import Counter

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from bert_pipeline.formats.tokenizer import SPECIAL_TOKENS


def is_a_word(character):
    """Whether BERT makes a word of the character wherever it stands: punctuation or Chinese (Devlin et al. 2019)."""
    chinese = unicodedata.name(character, "").startswith(("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH"))
    return character in string.punctuation or unicodedata.category(character)[0] == "P" or chinese


def learn_vocabulary(sentences, *, vocab_size, lowercase=True, min_frequency=2, limit_alphabet=1000):
    """Pieces in the order of their ids."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(tokenizer.normalizer.normalize_str(sentence))
    ranked = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    alphabet = sorted(ranked[:limit_alphabet])
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{character}" for character in alphabet if not is_a_word(character))],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
