"""What the assets call: build artifacts and registered models, and report them to Dagster and MLflow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg

from bert_pipeline import settings
from bert_pipeline.core.printable import plain
from bert_pipeline.data.corpus import card
from bert_pipeline.experiments import find_recipe
from bert_pipeline.lineage import Tracker, collect_lineage, make_stage, stage_origin
from bert_pipeline.recipe import FOR_READERS, Recipe, RecipeError
from bert_pipeline.stages import EVALUATION, inputs_of, kinds_of, resolve_recipe
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact
from orchestration import checks
from orchestration.pointers import ArtifactIOManager
from orchestration.registry import versions
from orchestration.registry.champion import challenge, judge, table
from orchestration.registry.ledger import find_champion, find_version
from orchestration.tracking import metadata
from orchestration.tracking.logs import library_log_in
from orchestration.tracking.mlflow_runs import DESCRIPTION, EXPERIMENT, About, Mlflow, failures_as_warnings
from orchestration.tracking.moved_home import follow_the_home
from orchestration.tracking.outstanding import deliver

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

UNTRACKED = ("raw_corpus", "contamination", "tokenizer", "nsp_dataset", "masked_dataset")
"""Stages that neither train nor evaluate a model, so they have no MLflow run."""

BUILT = "bert-pipeline/built"
"""Tag of a Dagster run that reached `registered_model`: the kinds that it built, or `nothing`."""


class Workshop(dg.ConfigurableResource):
    """Builds artifacts in one store, `store/kind/fingerprint`."""

    store: str
    pointers: str
    """Folder of ArtifactIOManager."""
    dagster_ui: str
    """URL of Dagster's UI, for links."""
    mlflow: Mlflow

    def make(self, context: dg.AssetExecutionContext, **inputs: Artifact) -> dg.MaterializeResult[Artifact]:
        """Return the asset's artifact for the partition's recipe, built if missing, with the results of its gates."""
        recipe = _recipe(context)
        return self._materialize(context, recipe, context.asset_key.to_user_string(), inputs)

    def evaluate(
        self, context: dg.AssetExecutionContext, checkpoint: Artifact
    ) -> Iterator[dg.MaterializeResult[Artifact]]:
        """Evaluate the selected tasks of the recipe, and summarize all of its tasks if `evaluations` is selected.

        Tasks that are not selected enter the summary from their existing artifacts, or are evaluated if they have none.
        """
        recipe, selected = _recipe(context), {key.to_user_string() for key in context.selected_asset_keys}
        tasks = [kind for kind in kinds_of(recipe) if kind.startswith(EVALUATION)]
        if selected.isdisjoint((*tasks, "evaluations")):
            raise RecipeError(
                f"recipe {recipe.name} evaluates none of {', '.join(sorted(selected))}; "
                "remedy: add [[evaluation.tasks]] with the name of the task to the recipe"
            )
        inputs = {checkpoint.kind: checkpoint}
        for kind in tasks:
            if kind in selected or "evaluations" in selected:
                result = self._materialize(context, recipe, kind, {checkpoint.kind: checkpoint})
                inputs[kind] = result.value
                if kind in selected:
                    yield result
        if "evaluations" in selected:
            existing = ArtifactIOManager(store=self.store, pointers=self.pointers)
            for kind in inputs_of("evaluations", recipe):
                inputs.setdefault(kind, existing.artifact(kind, context.partition_key))
            yield self._materialize(context, recipe, "evaluations", inputs)

    def _materialize(
        self, context: dg.AssetExecutionContext, recipe: Recipe, kind: str, inputs: Mapping[str, Artifact]
    ) -> dg.MaterializeResult[Artifact]:
        lineage = collect_lineage(recipe, inputs.values(), Path(self.store))
        with library_log_in(context.log):
            origin = stage_origin(kind, recipe, inputs)
            about = self._about(context, recipe, origin, inputs, lineage)
            plan: dict[str, Any] = {}

            @contextmanager
            def track() -> Iterator[Tracker]:
                if not inputs:
                    from bert_pipeline.planning.plan import plan_before  # lazy: it imports numba

                    plan.update(metadata.of_plan(plan_before(recipe, Path(self.store))))
                if kind in UNTRACKED:
                    yield Tracker()
                else:
                    with self.mlflow.track(about) as tracked:
                        yield Tracker(tracked.on_row, tracked.report)

            asked_by = {"dagster_run": context.run.run_id}
            made = make_stage(kind, recipe, inputs, about.destination, origin=origin, track=track, asked_by=asked_by)
            links = {} if kind in UNTRACKED else self._links_to_run(about, made)
        gates = checks.check_results(made, recipe)
        for gate in gates:
            if not gate.passed:
                log = context.log.warning if gate.severity == dg.AssetCheckSeverity.WARN else context.log.error
                log(f"{gate.check_name}: {gate.description}")  # Dagster's own error gives only its name
        return dg.MaterializeResult(
            asset_key=checks.asset_key(kind),
            value=made,
            metadata=links | metadata.of_artifact(made) | plan,
            check_results=gates,
            data_version=dg.DataVersion(made.fingerprint),
        )

    def register(
        self, context: dg.AssetExecutionContext, pretrained_checkpoint: Artifact, evaluations: Artifact
    ) -> dg.MaterializeResult:
        """Register the checkpoint as a version of the recipe's model, unless it is one; every gate must pass."""
        recipe = _recipe(context)
        artifacts = collect_lineage(recipe, (pretrained_checkpoint, evaluations), Path(self.store))
        checks.assert_all_pass(artifacts, recipe)
        with library_log_in(context.log):
            version = versions.register(self.mlflow, recipe, artifacts, self._tags(context, recipe, "registered_model"))
            faults = list(versions.faults_of_files(self.mlflow.client(), version))
        return dg.MaterializeResult(
            check_results=checks.results_of("registered_model", {"faults": faults}, recipe),
            metadata={
                "built": _report_what_was_built(context, artifacts),
                "name": version.name,
                "version": int(version.version),
                "alias": versions.ALIAS,
                "mlflow_model": dg.MetadataValue.url(self.mlflow.model_url(version.name, version.version)),
                **self._links_to_training(version),
                "model_card": dg.MetadataValue.md(version.description or ""),
            },
            data_version=dg.DataVersion(version.tags["fingerprint"]),
        )

    def champion(self, context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Compare the newest version with the champion; promote it if it is better and the recipe allows it."""
        recipe, client = _recipe(context), self.mlflow.client()
        name, store, by_rule = versions.model_name(recipe.name), Path(self.store), recipe.registry.promote != "never"
        version = find_version(client, name, versions.ALIAS)
        with library_log_in(context.log):
            verdict = (challenge if by_rule else judge)(client, store, name, version)
        now = find_champion(client, name)
        faults = list(versions.faults_of_champion(client, name, now)) if now else []
        shown: dict[str, Any] = {
            "name": name,
            "candidate": version,
            "champion": now or "none",
            "verdict": verdict.reason,
        }
        if verdict.better and not by_rule:
            shown["to_promote"] = f"bert-pipeline promote models:/{name}/{version}"
        if verdict.compared:
            shown["comparison"] = dg.MetadataValue.md(table(verdict.compared))
        if now:
            shown["mlflow_model"] = dg.MetadataValue.url(self.mlflow.model_url(name, now))
        return dg.MaterializeResult(
            metadata=shown,
            check_results=checks.results_of("champion", {"faults": faults}, recipe),
            data_version=dg.DataVersion(now or "none"),
        )

    def _links_to_run(self, about: About, made: Artifact) -> dict[str, Any]:
        """Links to the MLflow run of the artifact, after sending from its records what MLflow lacks."""
        with failures_as_warnings(self.mlflow):
            deliver(self.mlflow, about, wait=True)
            return self._links(self.mlflow.runs(made.fingerprint, "FINISHED")[0])
        return {}

    def _links_to_training(self, version: "ModelVersion") -> dict[str, Any]:
        """Links to the MLflow run that trained the version; none if the run was deleted since."""
        with failures_as_warnings(self.mlflow):
            return self._links(self.mlflow.client().get_run(version.run_id or ""))
        return {}

    def _links(self, run: "Run") -> dict[str, Any]:
        return {"mlflow_run": dg.MetadataValue.url(self.mlflow.run_url(run)), "mlflow_run_id": run.info.run_id}

    def _about(
        self,
        context: dg.AssetExecutionContext,
        recipe: Recipe,
        origin: dict[str, Any],
        inputs: Mapping[str, Artifact],
        lineage: Mapping[str, Artifact],
    ) -> About:
        kind, fingerprint = origin["kind"], artifact.fingerprint(origin)
        cards = [lineage["raw_corpus"].path / name for name in card.FILES] if kind == "pretrained_checkpoint" else []
        outside = {f"input.{name}": key for name, key in origin["inputs"].items() if name not in inputs}
        measured = kind.removeprefix(EVALUATION)  # first, because MLflow's lists truncate names after 18 characters
        return About(
            name=f"{measured} of {recipe.name}" if "pretrained_checkpoint" in inputs else f"{recipe.name} {kind}",
            kind=kind,
            fingerprint=fingerprint,
            destination=Path(self.store, kind, fingerprint),
            inputs=inputs,
            params=recipe.model_dump(mode="json", exclude={"name", *FOR_READERS}),
            tags=self._tags(context, recipe, kind) | outside,
            files=[path for path in cards if path.is_file()],  # older corpora have none
        )

    def _tags(self, context: dg.AssetExecutionContext, recipe: Recipe, kind: str) -> dict[str, str]:
        """Tags and a description that lead from MLflow back to Dagster."""
        run_id = context.run.run_id
        page, asset = self.run_page(run_id), self.asset_page(kind, context.partition_key)
        return {
            "dagster.run_id": run_id,
            "dagster.asset": kind,
            "dagster.partition": context.partition_key,
            "dagster.url": page,
            "dagster.asset_url": asset,
            DESCRIPTION: f"{plain(recipe.description)}\n\n"
            f"Made by asset [{kind}]({asset}) of recipe {plain(recipe.name)} in Dagster run [{run_id}]({page}).",
        }

    def run_page(self, run_id: str) -> str:
        return f"{self.dagster_ui}/runs/{run_id}"

    def asset_page(self, kind: str, partition: str) -> str:
        return f"{self.dagster_ui}/assets/{quote(kind)}?view=partitions&partition={quote(partition)}"


def _report_what_was_built(context: dg.AssetExecutionContext, artifacts: Mapping[str, Artifact]) -> str:
    """Log and tag the artifacts that this run built: none, if text, recipe and code are unchanged."""
    run_id = context.run.run_id
    built = [kind for kind, made in artifacts.items() if made.record["made"].get("dagster_run") == run_id]
    summary = ", ".join(built) or "nothing: text, recipe and code are unchanged"
    context.log.info(f"built by this run: {summary}")
    context.instance.add_run_tags(run_id, {BUILT: ", ".join(built) or "nothing"})
    return summary


def _recipe(context: dg.AssetExecutionContext) -> Recipe:
    return resolve_recipe(find_recipe(context.partition_key))


def resources(home: Path) -> dict[str, Any]:
    """Dagster's resources, with everything in one folder; MLFLOW_TRACKING_URI selects an MLflow server instead.

    BERT_PIPELINE_DAGSTER_URL and BERT_PIPELINE_MLFLOW_URL are the addresses of the UIs, for links.
    """
    files = home / "mlartifacts"
    follow_the_home(home / "mlflow.db", files, EXPERIMENT)
    mlflow = Mlflow(
        tracking_uri=settings.mlflow_tracking_uri(home),
        artifacts=str(files),
        ui=settings.mlflow_url(home),
    )
    folders = {"store": str(home / "artifacts"), "pointers": str(home / "pointers")}
    return {
        "workshop": Workshop(**folders, dagster_ui=settings.dagster_url(), mlflow=mlflow),
        "artifacts": ArtifactIOManager(**folders),
    }
