"""Preloaded by the server that training runs are forked from: slow imports that start no thread."""

import pandas as pd
import torch
from transformers import AutoTokenizer, BertForPreTraining

from bert_pipeline.core.randomness import DROPOUT, draw, new_stream
from bert_pipeline.training import pretrain

__all__ = ["AutoTokenizer", "BertForPreTraining", "pd", "pretrain", "torch"]

draw(new_stream(1, DROPOUT, number=0, row=0))  # the first call loads numba's compiled functions
