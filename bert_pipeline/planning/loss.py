"""The held-out MLM loss that a model will end with, from its size and the tokens that it trains on.

    loss = E + A (weights / 1e6)^-a + B (tokens / 1e6)^-b        (Hoffmann et al. 2022, arXiv 2203.15556, equation 2)

`weights` are those of the encoder layers (shapes.py), `tokens` those seen in training, repeated ones included.
`python -m benchmarks.scaling` measures runs and fits the relation.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """Losses in nats per masked token; valid for the text and the vocabulary that it was fitted on."""

    irreducible: float  # E
    size: float  # A
    size_exponent: float  # a
    data: float  # B
    data_exponent: float  # b

    def loss(self, weights: float, tokens: float) -> float:
        of_size = self.size * (weights / 1e6) ** -self.size_exponent
        return self.irreducible + of_size + self.data * (tokens / 1e6) ** -self.data_exponent
