"""Draw where the attention heads of the first layers look, before training and after it.

    python -m benchmarks.attention_maps --recipe small --model CHECKPOINT --out attention.png

The first row is the model as the recipe initializes it, the second one the trained checkpoint; a column is a head.
Bright: the query (row) attends to the key (column).
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import BertForPreTraining

from bert_pipeline.experiments import find_recipe
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.training.model.model import build_model

TEXT = "The patients received 5 mg of the drug daily for two weeks, and most of them tolerated the treatment well."
LENGTH = 24
"""Tokens drawn."""


def attention_maps(model: BertForPreTraining, input_ids: list[int], layers: int) -> torch.Tensor:
    """(layers * heads, LENGTH, LENGTH): attention weights of the first layers for one sentence."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        found = model.eval().bert(torch.tensor([input_ids]), output_attentions=True).attentions
    return torch.cat([layer[0] for layer in found[:layers]])[:, :LENGTH, :LENGTH]


def draw(rows: dict[str, torch.Tensor], path: Path) -> None:
    heads = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.6 * heads + 0.6, 1.75 * len(rows) + 0.2), layout="constrained")
    grid = figure.subplots(len(rows), heads, squeeze=False)
    for number, axes in enumerate(grid[0]):
        axes.set_title(f"head {number}", fontsize=9)
    for line, (name, maps) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axes, weights in zip(line, maps, strict=True):
            axes.imshow(weights, cmap="viridis", vmin=0)
            axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", required=True, help="name of the recipe that the model was trained with")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="trained checkpoint")
    parser.add_argument("--layers", type=int, default=1, metavar="N", help="first encoder layers to draw (default: 1)")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="picture to write")
    options = parser.parse_args()
    recipe, tokenizer = find_recipe(options.recipe), read_tokenizer(options.model)
    ids = [2, *tokenizer.encode(TEXT, add_special_tokens=False).ids, 3]
    start = build_model(recipe.model, tokenizer.get_vocab_size(), recipe.pretrain.seed)
    end = BertForPreTraining.from_pretrained(options.model, use_safetensors=True)
    maps = {"before training": start, "after": end}
    draw({name: attention_maps(model, ids, options.layers) for name, model in maps.items()}, options.out)


if __name__ == "__main__":
    main()
