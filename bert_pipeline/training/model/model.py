"""The model: a stock `transformers.BertForPreTraining` with random weights or with the weights of another model."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForPreTraining

from bert_pipeline.formats.initial_model import pieces_in_initial_model
from bert_pipeline.formats.tokenizer import PAD_ID, padded_vocab_size, read_tokenizer
from bert_pipeline.recipe import ModelRecipe
from bert_pipeline.training.model.structure import structure_attention

ROWS_OF_PIECES = ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias")
"""Parameters with one row per piece of the vocabulary. The MLM head shares the embedding matrix."""


def build_model(section: ModelRecipe, vocab_size: int, seed: int) -> BertForPreTraining:
    """A model with random weights, a function of (section, vocab_size, seed).

    Its vocabulary is padded to a multiple of 64 for the matrix units; the added ids never occur.
    """
    padded = padded_vocab_size(vocab_size)
    config = BertConfig(vocab_size=padded, pad_token_id=PAD_ID, type_vocab_size=2, **section.bert_config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertForPreTraining(config)
        if section.structured_attention_layers:
            structure_attention(model, section.structured_attention_layers, section.structured_attention_strength)
        return model


def initial_model(section: ModelRecipe, tokenizer: Path, seed: int, init_from: Path | None) -> BertForPreTraining:
    """A model with random weights, or with those of the BERT in the directory `init_from`, including any heads.

    Rows of ROWS_OF_PIECES are reordered to the ids of `tokenizer`; a piece that was added to the vocabulary gets the
    mean of the rows of the pieces that it replaces. Missing parameters (a head, rows that pad the vocabulary) stay
    random.
    """
    model = build_model(section, read_tokenizer(tokenizer).get_vocab_size(), seed)
    if init_from is None:
        return model
    found: Any = BertForPreTraining.from_pretrained(
        init_from, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    source, loading = found
    pieces = pieces_in_initial_model(init_from, tokenizer)
    padding = range(len(pieces), min(source.config.vocab_size, model.config.vocab_size))
    rows = [*pieces, *([number] for number in padding)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in loading["missing_keys"]:
                continue
            if name in ROWS_OF_PIECES:
                parameter[: len(rows)] = _means(source.get_parameter(name), rows)
            else:
                parameter.copy_(source.get_parameter(name))
    return model


def _means(parameter: torch.Tensor, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """The mean of each group of rows of a parameter."""
    ids = torch.tensor([number for group in rows for number in group])
    starts = torch.tensor([0, *accumulate(map(len, rows))][:-1])
    table = parameter.float().reshape(len(parameter), -1)
    means = torch.nn.functional.embedding_bag(ids, table, starts, mode="mean")
    return means.reshape(len(rows), *parameter.shape[1:])
