"""The card of a task model: README.md of its directory, with the metadata that the Hugging Face Hub reads."""

from typing import Any

from bert_pipeline.core.printable import plain
from bert_pipeline.core.tables import markdown_table
from bert_pipeline.report.hub import Result, front_matter, hub_task
from bert_pipeline.store.artifact import Facts

CARD = """\
# {name}

A BERT fine-tuned on {task} ({title}; data: {terms}).

```python
from transformers import pipeline

model = pipeline({arguments})
```

## Scores

{scores}
One run with seed {seed}: learning rate {learning_rate:g}, batch size {batch_size}, {num_epochs} epochs, inputs of at
most {max_seq_length} tokens. The model is that of the last epoch.

## Labels

{labels}

## Limits

- It was fine-tuned on the data of one task. On other text, and on other kinds of text, its scores will be lower.
- The terms of the training text and of the task's data decide about the license of the weights. Set `license` in the
  header of this file before you publish them.
- It marks up text. It does not state facts, and is not fit for decisions about patients.
- Social biases of the text were neither measured nor removed.
"""


def task_model_card(facts: Facts) -> str:
    """The card as Markdown, from the facts of the task_model."""
    name, kind = f"bert-{facts['task']}", facts["kind"]
    result = Result(facts["task"], kind, facts["metric"], facts["test"]["score"])
    rows = [(split, facts["metric"], f"{100 * facts[split]['score']:.2f}") for split in ("dev", "test")]
    card: dict[str, Any] = {
        "name": plain(name),
        "task": plain(facts["task"]),
        "title": plain(facts["title"]),
        "terms": plain(facts["terms"]),
        "arguments": _arguments(kind),
        "scores": markdown_table(("split", "metric", "percent"), rows),
        "labels": ", ".join(f"`{label}`" for label in facts["labels"]),
    }
    return front_matter(name, hub_task(kind), ["bert"], "", [result]) + "\n" + CARD.format_map({**facts, **card})


def _arguments(kind: str) -> str:
    """Those of transformers' pipeline, for spans or a score for each label."""
    if hub_task(kind) == "token-classification":
        return '"token-classification", DIRECTORY, aggregation_strategy="first"'
    return '"text-classification", DIRECTORY' + ("" if kind == "similarity" else ", top_k=None")
