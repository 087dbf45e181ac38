"""The tables at the end of `make demo`: artifacts and their paths, losses, scores, the registered model.

python -m orchestration.report demo
"""

import sys
from pathlib import Path

from bert_pipeline.core.tables import Table
from bert_pipeline.experiments import find_recipe
from bert_pipeline.report.score_table import mean_and_sd
from bert_pipeline.settings import home
from bert_pipeline.stages import kinds_of
from bert_pipeline.store.artifact import Artifact
from orchestration.registry import versions
from orchestration.tracking.mlflow_runs import Mlflow
from orchestration.workshop import resources


def report(recipe: str, home: Path) -> str:
    """The tables as text. Raises ArtifactError if the recipe's graph has not run to its end."""
    used = resources(home)
    kinds = kinds_of(find_recipe(recipe))
    made = {kind: used["artifacts"].artifact(kind, recipe) for kind in kinds}
    parts = [_artifacts(made), _pretraining(made["pretrained_checkpoint"])]
    parts += [_tasks(made["evaluations"])] if made["evaluations"].facts["tasks"] else []
    return "\n".join([*parts, _model(used["workshop"].mlflow, recipe), _next_commands(made, recipe)])


def _artifacts(made: dict[str, Artifact]) -> str:
    rows = [(kind, _path(one), f"{one.record['made']['seconds']:,.1f} s") for kind, one in made.items()]
    return Table(("artifact", "path", "built in"), rows).text()


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
    return Table(("on held-out text", "before training", "after"), rows).text()


def _tasks(evaluations: Artifact) -> str:
    rows = [
        (
            f"{task}, {scores['metric']}",
            mean_and_sd(scores["pretrained"]),
            mean_and_sd(scores["random_init"]) if "random_init" in scores else "not measured",
            str(len(scores["seeds"])),
        )
        for task, scores in evaluations.facts["tasks"].items()
    ]
    return Table(("fine-tuned on", "pretrained", "random initialisation", "seeds"), rows).text()


def _model(mlflow: Mlflow, recipe: str) -> str:
    version = mlflow.client().get_model_version_by_alias(versions.model_name(recipe), versions.ALIAS)
    rows = [(version.name, str(version.version), versions.ALIAS, f"models:/{version.name}@{versions.ALIAS}")]
    return Table(("registered model", "version", "alias", "for mlflow.pyfunc.load_model"), rows).text()


def _next_commands(made: dict[str, Artifact], recipe: str) -> str:
    rows = [
        ("graph, runs, curves, models", "make ui"),
        ("facts and decoded rows", f".venv/bin/bert-pipeline inspect {_path(made['masked_dataset'])}"),
        ("data card of the corpus", f"open {_path(made['raw_corpus'])}/data_card.html"),
        ("model card", f"cat {_path(made['pretrained_checkpoint'])}/MODEL_CARD.md"),
        ("run again; builds only what is new", f"make run RECIPE={recipe}"),
    ]
    return Table(("next step", "command"), rows).text()


def _path(made: Artifact) -> str:
    return str(made.path.relative_to(Path.cwd()) if made.path.is_relative_to(Path.cwd()) else made.path)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("Usage: python -m orchestration.report RECIPE", file=sys.stderr)
        sys.exit(2)
    print("\n" + report(sys.argv[1], home()))


if __name__ == "__main__":
    main()
