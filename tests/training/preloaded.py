"""Imported by the process that training runs are forked from: what takes each of them seconds, and starts no thread."""

import pandas as pd
import torch
from transformers import AutoTokenizer, BertForPreTraining

from bert_pipeline.core.randomness import DROPOUT, draw, new_stream
from bert_pipeline.training import pretrain

__all__ = ["AutoTokenizer", "BertForPreTraining", "pd", "pretrain", "torch"]

draw(new_stream(1, DROPOUT, number=0, row=0))  # numba reads what it knows of types and functions at its first call
