"""The held-out MLM loss that a model will end with, from its size, its text and the tokens that it trains on.

    loss = E + A (weights / 1e6)^-a + B (tokens / 1e6)^-b     (Hoffmann et al. 2022, arXiv 2203.15556, equation 2)

`weights` are those of the encoder layers (shapes.py). Tokens that training sees again are worth less: see `worth`.
`python -m benchmarks.scaling` measures runs and fits the constants.
"""

import math
from dataclasses import dataclass

REPETITIONS = 15.4
"""Repetitions after which a token has lost most of its worth, for language models of the next token (Muennighoff et al.
2023, arXiv 2305.16264). Not measured here."""


@dataclass(frozen=True)
class Relation:
    """Losses in nats per masked token. The constants hold for the text and the vocabulary that they were fitted on."""

    irreducible: float  # E
    size: float  # A
    size_exponent: float  # a
    data: float  # B
    data_exponent: float  # b

    def loss(self, weights: float, tokens: float) -> float:
        of_size = self.size * (weights / 1e6) ** -self.size_exponent
        return self.irreducible + of_size + self.data * (tokens / 1e6) ** -self.data_exponent


def worth(tokens: float, in_text: float) -> float:
    """Tokens read once that would teach as much as `tokens` of a text that has only `in_text` (Muennighoff et al. 2023,
    section 3).
    """
    if tokens <= in_text:
        return tokens
    repetitions = tokens / in_text - 1
    return in_text * (1 + REPETITIONS * (1 - math.exp(-repetitions / REPETITIONS)))


RELATION = Relation(2.856, 0.3175, 0.6966, 2.643, 0.5916)
"""Of `small`'s text and vocabulary and three widths (recipes/LOG.md), within 2.5 % of every run."""
INTERVAL = 0.1
"""Share of the loss by which a prediction may be wrong: on general English text it was 8 % too low."""
