"""The measured tasks of the benchmark of init's choice: choosing, and training one model.

<folder>/tokenizer ...    the datasets, as benchmarks.curves prepares them
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, answer
from bert_pipeline.recipe import CorpusRecipe, Recipe


def choose(text: str, fields: Sequence[str], minutes: float) -> Answer:
    """The recipe that init chooses."""
    from bert_pipeline.fitting import choice

    chosen = choice.choose(CorpusRecipe(path=text, text_fields=tuple(fields)), minutes).recipe
    return {"recipe": chosen.model_dump(mode="json")}


def train(folder: str, recipe: dict[str, Any]) -> Answer:
    """Train the recipe on the datasets in `folder`; the clock counts the steps."""
    from bert_pipeline.lineage import make_stage
    from bert_pipeline.store import artifact

    here = Path(folder)
    inputs = {kind: artifact.load(here / kind) for kind in ("tokenizer", "nsp_dataset", "masked_dataset")}
    chosen = Recipe.model_validate_json(json.dumps(recipe))
    with tempfile.TemporaryDirectory(dir=here) as out:
        facts = make_stage("pretrained_checkpoint", chosen, inputs, Path(out, "checkpoint")).facts
    return {
        "steps": facts["num_steps"],
        "tokens": facts["train_tokens_seen"],
        "seconds": facts["train_tokens_seen"] / facts["tokens_per_second"],
        **{name: facts["heldout_after"][name] for name in ("mlm_loss", "mlm_accuracy")},
    }


if __name__ == "__main__":
    answer(choose, train)
