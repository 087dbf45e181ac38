"""The model: a stock `transformers.BertForPreTraining`, made from a recipe or begun with the weights of another."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForPreTraining

from bert_pipeline.formats.initial_model import ids_in_initial_model
from bert_pipeline.formats.tokenizer import PAD_ID, padded_vocab_size, read_tokenizer
from bert_pipeline.recipe import ModelRecipe

ROWS_OF_PIECES = ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias")
"""Parameters with a row for each piece of the vocabulary; the MLM head shares the embedding's matrix."""


def build_model(section: ModelRecipe, vocab_size: int, seed: int) -> BertForPreTraining:
    """A model with fresh weights, a function of (section, vocab_size, seed).

    Its vocabulary is padded to a multiple of 64, which matrix units like; the added ids never occur.
    """
    padded = padded_vocab_size(vocab_size)
    config = BertConfig(vocab_size=padded, pad_token_id=PAD_ID, type_vocab_size=2, **section.model_dump())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForPreTraining(config)


def initial_model(section: ModelRecipe, tokenizer: Path, seed: int, init_from: str | None) -> BertForPreTraining:
    """Fresh weights, or those of the BERT in the directory `init_from`: with whatever heads it has.

    Its rows of pieces are put in the order of `tokenizer`. What it lacks (a head, rows that pad) stays fresh.
    """
    model = build_model(section, read_tokenizer(tokenizer).get_vocab_size(), seed)
    if init_from is None:
        return model
    found: Any = BertForPreTraining.from_pretrained(
        init_from, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    source, told = found
    pieces = ids_in_initial_model(Path(init_from), tokenizer)
    padding = range(len(pieces), min(source.config.vocab_size, model.config.vocab_size))
    places = torch.tensor([*pieces, *padding])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in told["missing_keys"]:
                continue
            if name in ROWS_OF_PIECES:
                parameter[: len(places)] = source.get_parameter(name)[places]
            else:
                parameter.copy_(source.get_parameter(name))
    return model
