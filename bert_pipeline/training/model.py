"""The model: a stock `transformers.BertForPreTraining`, made from a recipe."""

import torch
from transformers import BertConfig, BertForPreTraining

from bert_pipeline.formats import PAD_ID, padded_vocab_size
from bert_pipeline.recipe import ModelRecipe


def build_model(section: ModelRecipe, vocab_size: int, seed: int) -> BertForPreTraining:
    """A model with fresh weights, a function of (section, vocab_size, seed).

    Its vocabulary is padded to a multiple of 64, which matrix units like; the added ids never occur.
    """
    padded = padded_vocab_size(vocab_size)
    config = BertConfig(vocab_size=padded, pad_token_id=PAD_ID, type_vocab_size=2, **section.model_dump())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForPreTraining(config)
