"""One command for each stage: it builds an artifact in `--out` from a recipe and the artifacts that the stage reads.

A command returns at once if `--out` has the same artifact already.
"""

from pathlib import Path
from typing import Annotated

import typer

from bert_pipeline.cli.options import RECIPE_HELP, STAGES, recipe_named
from bert_pipeline.cli.output import facts_table, show, show_json

Recipe = Annotated[str, typer.Option("--recipe", metavar="RECIPE", help=RECIPE_HELP)]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to build the artifact in.")]
Json = Annotated[bool, typer.Option("--json", help="Print the artifact's record as JSON.")]


def _directory(kind: str) -> typer.models.OptionInfo:
    flag = f"--{kind.replace('_', '-')}"
    return typer.Option(flag, metavar="DIR", help=f"Directory of the {kind}.")


RawCorpus = Annotated[Path, _directory("raw_corpus")]
Tokenizer = Annotated[Path, _directory("tokenizer")]
NspDataset = Annotated[Path, _directory("nsp_dataset")]
MaskedDataset = Annotated[Path, _directory("masked_dataset")]


def add(app: typer.Typer) -> None:
    for name, command in (
        ("raw-corpus", raw_corpus),
        ("contamination", contamination),
        ("tokenizer", tokenizer),
        ("nsp-dataset", nsp_dataset),
        ("masked-dataset", masked_dataset),
        ("pretrain", pretrain),
    ):
        app.command(name, rich_help_panel=STAGES)(command)


def raw_corpus(recipe: Recipe, out: Out, as_json: Json = False) -> None:
    """Build the corpus: read, clean and deduplicate the recipe's text files."""
    _make("raw_corpus", recipe, {}, out, as_json)


def contamination(recipe: Recipe, raw_corpus: RawCorpus, out: Out, as_json: Json = False) -> None:
    """Measure how much of the evaluation tasks' text the corpus holds."""
    _make("contamination", recipe, {"raw_corpus": raw_corpus}, out, as_json)


def tokenizer(recipe: Recipe, raw_corpus: RawCorpus, out: Out, as_json: Json = False) -> None:
    """Learn a WordPiece vocabulary from the corpus."""
    _make("tokenizer", recipe, {"raw_corpus": raw_corpus}, out, as_json)


def nsp_dataset(recipe: Recipe, raw_corpus: RawCorpus, tokenizer: Tokenizer, out: Out, as_json: Json = False) -> None:
    """Build sentence pairs for next sentence prediction, as token ids."""
    _make("nsp_dataset", recipe, {"raw_corpus": raw_corpus, "tokenizer": tokenizer}, out, as_json)


def masked_dataset(
    recipe: Recipe, tokenizer: Tokenizer, nsp_dataset: NspDataset, out: Out, as_json: Json = False
) -> None:
    """Mask the tokens of all pairs for masked language modeling."""
    _make("masked_dataset", recipe, {"tokenizer": tokenizer, "nsp_dataset": nsp_dataset}, out, as_json)


def pretrain(
    recipe: Recipe,
    tokenizer: Tokenizer,
    nsp_dataset: NspDataset,
    masked_dataset: MaskedDataset,
    out: Out,
    as_json: Json = False,
) -> None:
    """Train the model on the masked pairs and export it for Hugging Face.

    A run that was interrupted resumes from its last checkpoint.
    """
    inputs = {"tokenizer": tokenizer, "nsp_dataset": nsp_dataset, "masked_dataset": masked_dataset}
    _make("pretrained_checkpoint", recipe, inputs, out, as_json)


def _make(kind: str, recipe: str, inputs: dict[str, Path], out: Path, as_json: bool) -> None:
    from bert_pipeline.lineage import make_stage
    from bert_pipeline.store import artifact

    loaded = recipe_named(recipe)
    made = make_stage(kind, loaded, {name: artifact.load(path, name) for name, path in inputs.items()}, out)
    if as_json:
        show_json(dict(made.record) | {"path": str(made.path)})
    else:
        show(f"{made.kind} {made.fingerprint} in {made.path}", facts_table(made.facts))
