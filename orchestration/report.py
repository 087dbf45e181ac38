"""The table at the end of a run: what was made, where it lies, what it is worth.

python -m orchestration.report demo
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.report.score_table import mean_and_sd
from bert_pipeline.settings import home
from bert_pipeline.stages import kinds_of
from bert_pipeline.store.artifact import Artifact
from orchestration.registry import versions
from orchestration.tracking.mlflow_runs import Mlflow
from orchestration.workshop import resources


def report(recipe: str, home: Path) -> str:
    """Raises ArtifactError where the recipe's graph has not been run to its end."""
    used = resources(home)
    kinds = kinds_of(load_recipe(recipe_files()[recipe]))
    made = {kind: used["artifacts"].artifact(kind, recipe) for kind in kinds}
    parts = [_artifacts(made), _pretraining(made["pretrained_checkpoint"])]
    parts += [_tasks(made["evaluations"])] if made["evaluations"].facts["tasks"] else []
    return "\n".join([*parts, _model(used["workshop"].mlflow, recipe), _further(made, recipe)])


def _artifacts(made: dict[str, Artifact]) -> str:
    rows = [(kind, _path(one), f"{one.record['made']['seconds']:,.1f} s") for kind, one in made.items()]
    return _table(("artifact", "where it lies", "built in"), rows)


def _pretraining(checkpoint: Artifact) -> str:
    before, after = checkpoint.facts["heldout_before"], checkpoint.facts["heldout_after"]
    rows = [
        (f"{task} {score}", f"{before[name]:.4f}", f"{after[name]:.4f}")
        for name, task, score in (
            ("mlm_loss", "MLM", "loss"),
            ("mlm_accuracy", "MLM", "accuracy"),
            ("nsp_loss", "NSP", "loss"),
            ("nsp_accuracy", "NSP", "accuracy"),
        )
        if name in after
    ]
    return _table(("on held-out text", "before training", "after"), rows)


def _tasks(evaluations: Artifact) -> str:
    rows = [
        (
            f"{task}, {scores['metric']}",
            mean_and_sd(scores["pretrained"]),
            mean_and_sd(scores["random_init"]),
            str(len(scores["seeds"])),
        )
        for task, scores in evaluations.facts["tasks"].items()
    ]
    return _table(("fine-tuned on", "pretrained", "random initialisation", "seeds"), rows)


def _model(mlflow: Mlflow, recipe: str) -> str:
    version = mlflow.client().get_model_version_by_alias(versions.model_name(recipe), versions.ALIAS)
    rows = [(version.name, str(version.version), versions.ALIAS, f"models:/{version.name}@{versions.ALIAS}")]
    return _table(("registered model", "version", "alias", "for mlflow.pyfunc.load_model"), rows)


def _further(made: dict[str, Artifact], recipe: str) -> str:
    rows = [
        ("graph, runs, curves, models", "make ui"),
        ("facts and decoded rows", f".venv/bin/bert-pipeline inspect {_path(made['masked_dataset'])}"),
        ("what the text is", f"open {_path(made['raw_corpus'])}/data_card.html"),
        ("what the model was made from", f"cat {_path(made['pretrained_checkpoint'])}/MODEL_CARD.md"),
        ("again: builds only what is new", f"make run RECIPE={recipe}"),
    ]
    return _table(("to look further", ""), rows)


def _path(made: Artifact) -> str:
    return str(made.path.relative_to(Path.cwd()) if made.path.is_relative_to(Path.cwd()) else made.path)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rule = "-" * len(max(text, key=len))
    return "\n".join([text[0], rule, *text[1:], ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m orchestration.report", description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    print("\n" + report(parser.parse_args().recipe, home()))


if __name__ == "__main__":
    main()
