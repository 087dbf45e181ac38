"""Show how many of a model's feed-forward units are active on a text, by layer.

    python -m benchmarks.active_units --model CHECKPOINT [--model CHECKPOINT] --text FILE [--documents N] [--json]

bert_pipeline/training/model/units.py says what active means.
"""

import argparse
import json
from itertools import islice
from typing import Any

from transformers import AutoModel, AutoTokenizer

from benchmarks.text import documents
from bert_pipeline.core.tables import Table
from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.fitting.fields import choose_fields
from bert_pipeline.training.model.units import Units, active_units


def table(found: dict[str, list[Units]]) -> str:
    rows = [
        (name, str(number), f"{units.mean:.2f}", f"{units.sd:.2f}", f"{units.active:.1%}", f"{units.never_active:.1%}")
        for name, layers in found.items()
        for number, units in enumerate(layers)
    ]
    return Table(("model", "layer", "mean input", "sd", "active", "units never active"), rows).text()


def measure(directory: str, texts: list[str]) -> list[Units]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory, use_safetensors=True, attn_implementation="eager")
    longest = model.config.max_position_embeddings
    encoded = (tokenizer(text, truncation=True, max_length=longest, return_tensors="pt") for text in texts)
    return active_units(model, encoded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", action="append", required=True, metavar="DIR", help="checkpoint of a BERT")
    parser.add_argument("--text", required=True, metavar="FILE", help="the text; `init` reads the same formats")
    parser.add_argument("--documents", type=int, default=100, metavar="N", help="first documents (default: 100)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    try:
        fields = choose_fields(options.text)[0]
    except SourceError as error:
        parser.error(str(error))
    texts = [" ".join(each.values()) for each in islice(documents(options.text, tuple(fields)), options.documents)]
    found = {directory: measure(directory, texts) for directory in options.model}
    as_json: dict[str, Any] = {name: [units._asdict() for units in layers] for name, layers in found.items()}
    print(json.dumps(as_json) if options.json else table(found))


if __name__ == "__main__":
    main()
