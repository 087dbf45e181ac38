"""The model card (Mitchell et al. 2019, arXiv 1810.03993) of a checkpoint, written from the facts of its stages:
README.md of its directory and of its run in MLflow.

Parts without facts are left out, so the same function serves a bare checkpoint and a registered model. Facts are lists,
not tables, because MLflow shows tables without space between their columns.
"""

from collections.abc import Mapping
from typing import Any

from bert_pipeline.core.printable import plain
from bert_pipeline.recipe_files import to_toml
from bert_pipeline.report.hub import Result, front_matter
from bert_pipeline.report.score_table import scores_list
from bert_pipeline.store.artifact import Facts

HEADER = """\

# {name}

A BERT encoder (Devlin et al. 2019, arXiv 1810.04805) {origin} on the text described below.

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
model = AutoModelForMaskedLM.from_pretrained(DIRECTORY)
```
"""

LIMITS = """\
## Limits

- The model has read the text described above{and_more}; what is rare there it does not know.
- The terms of the training text decide about the license of the weights. Set `license` in the header of this file
  before you publish them.
- It represents text and fills gaps in it. It does not state facts, and is not fit for decisions about patients.
- The scores hold for the data that they were measured on. Social biases of the text were neither measured nor removed.
"""

GENERATED_TEXT = (
    "- The training text was **generated** to demonstrate the pipeline: names, doses and findings in it are invented.\n"
)


def model_card(name: str, recipe_sections: Mapping[str, Any], facts_by_stage: Mapping[str, Facts]) -> str:
    """The card as Markdown. `recipe_sections`: values by section name; `facts_by_stage`: facts by artifact kind."""
    generated = recipe_sections.get("corpus", {}).get("source") == "sample"
    begun_from = recipe_sections.get("pretrain", {}).get("init_from")
    how, origin = "trained-from-scratch", "trained from scratch"
    if begun_from:
        how = "continual-pretraining"
        origin = f"begun with the weights and the vocabulary of {plain(begun_from)} and trained further"
    evaluations = facts_by_stage.get("evaluations", {}).get("tasks", {})
    results = [
        Result(task, each["kind"], each["metric"], each["pretrained"]["score_mean"])
        for task, each in evaluations.items()
    ]
    language = "en" if generated else recipe_sections.get("corpus", {}).get("language", "")
    header = front_matter(name, "fill-mask", ["bert", how], language, results)
    parts = [
        header + HEADER.format(name=plain(name), origin=origin),
        _tasks(facts_by_stage.get("evaluations", {})),
        _heldout(facts_by_stage),
        _facts("Data", "raw_corpus", facts_by_stage) + _data(facts_by_stage.get("raw_corpus", {})),
        _facts("Tokenizer", "tokenizer", facts_by_stage),
        _facts("Training", "pretrained_checkpoint", facts_by_stage),
        "## Recipe\n\n```toml\n" + to_toml(recipe_sections) + "```\n",
        LIMITS.format(and_more=", and what the model before it had read" if begun_from else " and nothing else")
        + (GENERATED_TEXT if generated else ""),
    ]
    return "\n".join(part for part in parts if part)


def text_of(card: str) -> str:
    """The card without its YAML header, which only the Hugging Face Hub reads and other pages would show as text."""
    return card.partition("\n---\n")[2].lstrip()


def _facts(title: str, stage: str, facts_by_stage: Mapping[str, Facts]) -> str:
    numbers = {name: value for name, value in facts_by_stage.get(stage, {}).items() if isinstance(value, int | float)}
    return _listed(title, {name: _number(value) for name, value in numbers.items()})


def _listed(title: str, facts: Mapping[str, str]) -> str:
    lines = "".join(f"- {name.replace('_', ' ')}: {value}\n" for name, value in facts.items())
    return f"## {title}\n\n{lines}" if lines else ""


def _data(corpus: Facts) -> str:
    """Summary of sources and dropped documents; the data card has the details."""
    if "records" not in corpus:
        return ""
    newest = f"The newest source file was released on {corpus['cut_off']}. " if corpus["cut_off"] else ""
    reasons = sorted(corpus["dropped_by_reason"].items(), key=lambda item: -item[1])
    dropped = f"Left out: {', '.join(f'{count:,} ({reason})' for reason, count in reasons)}. " if reasons else ""
    sources = corpus["sources_fingerprint"]
    fingerprint = f"Fingerprint of the sources: `{sources}`. " if sources else ""
    return f"\n{newest}{dropped}{fingerprint}More in the data card of the corpus, `data_card.html`.\n"


def _heldout(facts_by_stage: Mapping[str, Facts]) -> str:
    checkpoint = facts_by_stage.get("pretrained_checkpoint", {})
    before, after = checkpoint.get("heldout_before", {}), checkpoint.get("heldout_after", {})
    scores = {
        name: f"{_number(after[name])}, before training {_number(before[name])}" for name in before if name in after
    }
    return _listed("Scores of pretraining on held-out text", scores)


def _tasks(evaluations: Facts) -> str:
    if not evaluations.get("tasks"):
        return ""
    return "## Scores of fine-tuning (percent, mean ± standard deviation over seeds)\n\n" + scores_list(evaluations)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
