"""The tables at the end of `bert-pipeline run`: artifacts and their paths, losses, scores, the registered model, the
comparison with the champion, and the next commands.

python -m orchestration.report demo
"""

import shlex
import sys
from pathlib import Path

from bert_pipeline.core.tables import Table
from bert_pipeline.experiments import find_recipe
from bert_pipeline.recipe import Recipe
from bert_pipeline.report.score_table import mean_and_sd
from bert_pipeline.settings import home
from bert_pipeline.stages import kinds_of
from bert_pipeline.store.artifact import Artifact
from orchestration.registry import versions
from orchestration.registry.champion import judge
from orchestration.registry.ledger import find_champion
from orchestration.tracking.mlflow_runs import Mlflow
from orchestration.workshop import resources


def report(recipe: str, home: Path) -> str:
    """The tables as text. Raises ArtifactError if the recipe's graph has not run to its end."""
    used = resources(home)
    kinds = kinds_of(find_recipe(recipe))
    made = {kind: used["artifacts"].artifact(kind, recipe) for kind in kinds}
    parts = [_artifacts(made), _pretraining(made["pretrained_checkpoint"], find_recipe(recipe))]
    parts += [_tasks(made["evaluations"])] if made["evaluations"].facts["tasks"] else []
    return "\n".join([*parts, *_model(used["workshop"].mlflow, home, made, recipe)])


def _artifacts(made: dict[str, Artifact]) -> str:
    rows = [(kind, _shown(one.path), f"{one.record['made']['seconds']:,.1f} s") for kind, one in made.items()]
    return Table(("artifact", "path", "built in"), rows).text()


def _pretraining(checkpoint: Artifact, recipe: Recipe) -> str:
    before, after = checkpoint.facts["heldout_before"], checkpoint.facts["heldout_after"]
    expected = recipe.expected_mlm_loss
    shown = "" if expected is None else f" (expected: {expected[0]:.2f} to {expected[1]:.2f})"
    rows = [
        (f"{task} {score}", f"{before[name]:.4f}", f"{after[name]:.4f}" + (shown if name == "mlm_loss" else ""))
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


def _model(mlflow: Mlflow, home: Path, made: dict[str, Artifact], recipe: str) -> list[str]:
    client, name = mlflow.client(), versions.model_name(recipe)
    version = client.get_model_version_by_alias(name, versions.ALIAS)
    verdict = judge(client, home / "artifacts", name, version.version)
    champion = find_champion(client, name)
    if champion == version.version:  # promoted by rule in this run, or earlier
        better = f"it is the champion: {version.tags.get('challenge', 'promoted by hand')}"
    else:
        better = f"{'yes' if verdict.better else 'no'}: {verdict.reason}"
    rows = [(name, str(version.version), champion or "none", better)]
    decided = Table(("registered model", "candidate", "champion", "better than the champion"), rows).text()
    return [decided, _next_commands(made, f"models:/{name}@{versions.ALIAS}", verdict.better)]


def _next_commands(made: dict[str, Artifact], candidate: str, better: bool) -> str:
    """`better`: whether the candidate should be promoted."""
    program = _program()
    rows = [
        ("see the graph, runs, curves, models", f"{program} ui"),
        *([("use this version", f"{program} promote {candidate}")] if better else []),
        ("ask the model over HTTP", f"{program} serve {candidate}"),
        ("see decoded training rows", f"{program} inspect {_path(made['masked_dataset'])}"),
        ("read the model card", f"cat {_path(made['pretrained_checkpoint'], 'README.md')}"),
    ]
    return Table(("next step", "command"), rows).text()


def _program() -> str:
    """The command as a person types it here: by its path, if it is in a virtual environment of this folder."""
    program = Path(sys.prefix, "bin", "bert-pipeline")
    return shlex.quote(_shown(program)) if program.is_relative_to(Path.cwd()) else program.name


def _path(made: Artifact, file: str = "") -> str:
    return shlex.quote(_shown(made.path / file))


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("Usage: python -m orchestration.report RECIPE", file=sys.stderr)
        sys.exit(2)
    print("\n" + report(sys.argv[1], home()))


if __name__ == "__main__":
    main()
