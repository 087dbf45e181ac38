"""What the assets use: the workshop makes artifacts, and tells Dagster and MLflow what was made."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg

from bert_pipeline import settings
from bert_pipeline.core.printable import plain
from bert_pipeline.data.corpus import card
from bert_pipeline.recipe import Recipe, RecipeError
from bert_pipeline.recipe_files import find_recipe
from bert_pipeline.stages import (
    EVALUATION,
    check_artifact_files,
    find_stage,
    inputs_of,
    kinds_of,
    resolve_recipe,
    sources_in_store,
    stage_origin,
)
from bert_pipeline.store import artifact, remote
from bert_pipeline.store.artifact import Artifact, ArtifactError, Facts
from orchestration import checks
from orchestration.pointers import ArtifactIOManager
from orchestration.registry import versions
from orchestration.registry.champion import challenge, judge, table, version_or_none
from orchestration.registry.ledger import find_champion, find_version
from orchestration.tracking import metadata
from orchestration.tracking.logs import library_log_in
from orchestration.tracking.mlflow_runs import DESCRIPTION, About, Mlflow, not_stopped_by
from orchestration.tracking.outstanding import deliver

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

UNTRACKED = ("raw_corpus", "contamination", "tokenizer", "nsp_dataset", "masked_dataset")
"""Stages that neither train nor measure a model, and so have no run in MLflow."""

BUILT = "bert-pipeline/built"
"""Tag of a run that came to the registry: the kinds that it built, or `nothing`."""


class Workshop(dg.ConfigurableResource):
    """Makes artifacts in one store, `store/kind/fingerprint`."""

    store: str
    pointers: str
    """See ArtifactIOManager."""
    dagster_ui: str
    """Address of Dagster's pages, for links."""
    mlflow: Mlflow

    def make(self, context: dg.AssetExecutionContext, **inputs: Artifact) -> dg.MaterializeResult[Artifact]:
        """Build the asset's artifact for the partition's recipe, or find it standing; then its gates."""
        recipe = _recipe(context)
        return self._materialize(context, recipe, context.asset_key.to_user_string(), inputs)

    def evaluate(
        self, context: dg.AssetExecutionContext, checkpoint: Artifact
    ) -> Iterator[dg.MaterializeResult[Artifact]]:
        """The selected ones of the recipe's tasks, and their summary.

        The summary is made from all tasks of the recipe; what stands of them is taken as it is.
        """
        recipe, selected = _recipe(context), {key.to_user_string() for key in context.selected_asset_keys}
        tasks = [kind for kind in kinds_of(recipe) if kind.startswith(EVALUATION)]
        if selected.isdisjoint((*tasks, "evaluations")):
            raise RecipeError(
                f"recipe {recipe.name} asks for none of {', '.join(sorted(selected))}; remedy: [[evaluation.tasks]] "
                "in the recipe, with the name of the task"
            )
        inputs = {checkpoint.kind: checkpoint}
        for kind in tasks:
            if kind in selected or "evaluations" in selected:
                result = self._materialize(context, recipe, kind, {checkpoint.kind: checkpoint})
                inputs[kind] = result.value
                if kind in selected:
                    yield result
        if "evaluations" in selected:
            made = ArtifactIOManager(store=self.store, pointers=self.pointers)
            for kind in inputs_of("evaluations", recipe):
                inputs.setdefault(kind, made.artifact(kind, context.partition_key))
            yield self._materialize(context, recipe, "evaluations", inputs)

    def _materialize(
        self, context: dg.AssetExecutionContext, recipe: Recipe, kind: str, inputs: Mapping[str, Artifact]
    ) -> dg.MaterializeResult[Artifact]:
        lineage = self._lineage(recipe, *inputs.values())
        with library_log_in(context.log):
            stage, origin = find_stage(kind), stage_origin(kind, recipe, inputs)
            plan: dict[str, Any] = {}
            about = self._about(context, recipe, origin, inputs, lineage)

            def build(out: Path) -> Facts:
                paths = {name: made.path for name, made in inputs.items()}
                if not inputs:
                    from bert_pipeline.planning.plan import plan_before  # it brings numba, the graph does without

                    plan.update(metadata.of_plan(plan_before(recipe, Path(self.store))))
                if kind in UNTRACKED:
                    return stage.build(recipe, paths, out, lambda row: None)
                with self.mlflow.track(about) as tracked:
                    facts = stage.build(recipe, paths, out, tracked.on_row)
                    tracked.report(facts, out)
                return facts

            how: dict[str, Any] = {"resumable": stage.resumable, "tier": remote.from_environment()}
            made = artifact.make(about.destination, origin, build, **how, asked_by={"dagster_run": context.run.run_id})
            check_artifact_files(kind, made.path)
            links = {} if kind in UNTRACKED else self._links(about, made)
        gates = checks.check_results(made, recipe)
        for gate in gates:
            if not gate.passed:
                context.log.error(f"{gate.check_name}: {gate.description}")  # Dagster's own error names it only
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
        """Make the checkpoint a version of the recipe's model, unless it is one; every gate must be open."""
        recipe = _recipe(context)
        artifacts = self._lineage(recipe, pretrained_checkpoint, evaluations)
        checks.assert_all_pass(artifacts, recipe)
        with library_log_in(context.log):
            version = versions.register(self.mlflow, recipe, artifacts, self._tags(context, recipe, "registered_model"))
            faults = list(versions.faults_of_files(self.mlflow.client(), version))
        return dg.MaterializeResult(
            check_results=checks.results_of("registered_model", {"faults": faults}, recipe),
            metadata={
                "built": _tell_what_was_built(context, artifacts),
                "name": version.name,
                "version": int(version.version),
                "alias": versions.ALIAS,
                "mlflow_model": dg.MetadataValue.url(self.mlflow.model_url(version.name, version.version)),
                **self._link_to_run(version),
                "model_card": dg.MetadataValue.md(version.description or ""),
            },
            data_version=dg.DataVersion(version.tags["fingerprint"]),
        )

    def _link_to_run(self, version: "ModelVersion") -> dict[str, Any]:
        """The training that the version came from; someone may have deleted it since."""
        with not_stopped_by(self.mlflow):
            run = self.mlflow.client().get_run(version.run_id or "")
            return {"mlflow_run": dg.MetadataValue.url(self.mlflow.run_url(run)), "mlflow_run_id": run.info.run_id}
        return {}

    def champion(self, context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Compare the newest version with the champion; promote it only where the recipe says so and it is better."""
        recipe, client = _recipe(context), self.mlflow.client()
        name, store, by_rule = versions.model_name(recipe.name), Path(self.store), recipe.registry.promote != "never"
        version = find_version(client, name, versions.ALIAS)
        with library_log_in(context.log):
            verdict = (challenge if by_rule else judge)(client, store, name, version)
        now = find_champion(client, name)
        serving = version_or_none(client, name, now) if now else None
        faults = list(versions.faults_of_files(client, serving)) if serving else []
        if now and serving is None:
            faults = [f"the alias champion points to version {now}, which is deleted; remedy: bert-pipeline promote"]
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

    def _lineage(self, recipe: Recipe, *artifacts: Artifact) -> dict[str, Artifact]:
        """The artifacts and all that they were made from, by kind.

        Raises ArtifactError where they do not belong together, or were made before the recipe was changed.
        """
        found: dict[str, Artifact] = {}
        waiting = list(artifacts)
        while waiting:
            made = waiting.pop()
            known = found.setdefault(made.kind, made)
            if known.fingerprint != made.fingerprint:
                raise ArtifactError(f"{known.path} and {made.path} do not belong together; remedy: materialize both")
            origin = made.record["origin"]
            section = find_stage(made.kind).section(recipe)
            if artifact.fingerprint(origin["section"]) != artifact.fingerprint(section):
                raise ArtifactError(
                    f"{made.path} was made before recipe {recipe.name} was changed; "
                    f"remedy: materialize {made.kind} and what follows it"
                )
            asked_for = inputs_of(made.kind, recipe)
            sources = {kind: key for kind, key in sources_in_store(made).items() if kind in asked_for}
            waiting += [remote.load(Path(self.store), kind, key) for kind, key in sources.items()]
        return {kind: found[kind] for kind in kinds_of(recipe) if kind in found}

    def _links(self, about: About, made: Artifact) -> dict[str, Any]:
        """Where MLflow tells how the artifact was made. What it was never told, it is told from the records."""
        with not_stopped_by(self.mlflow):
            deliver(self.mlflow, about, wait=True)
            run = self.mlflow.runs(made.fingerprint, "FINISHED")[0]
            return {"mlflow_run": dg.MetadataValue.url(self.mlflow.run_url(run)), "mlflow_run_id": run.info.run_id}
        return {}

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
        measured = kind.removeprefix(EVALUATION)  # first, because MLflow's lists cut names after 18 characters
        return About(
            name=f"{measured} of {recipe.name}" if "pretrained_checkpoint" in inputs else f"{recipe.name} {kind}",
            kind=kind,
            fingerprint=fingerprint,
            destination=Path(self.store, kind, fingerprint),
            inputs=inputs,
            params=recipe.model_dump(mode="json", exclude={"name", "description"}),
            tags=self._tags(context, recipe, kind) | outside,
            files=[path for path in cards if path.is_file()],  # an older corpus has none
        )

    def _tags(self, context: dg.AssetExecutionContext, recipe: Recipe, kind: str) -> dict[str, str]:
        """What leads from MLflow back to Dagster."""
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


def _tell_what_was_built(context: dg.AssetExecutionContext, artifacts: Mapping[str, Artifact]) -> str:
    """For people who look at the run: a retraining whose text, recipe and code are what they were builds nothing."""
    run_id = context.run.run_id
    built = [kind for kind, made in artifacts.items() if made.record["made"].get("dagster_run") == run_id]
    told = ", ".join(built) or "nothing: text, recipe and code are what they were"
    context.log.info(f"built by this run: {told}")
    context.instance.add_run_tags(run_id, {BUILT: ", ".join(built) or "nothing"})
    return told


def _recipe(context: dg.AssetExecutionContext) -> Recipe:
    return resolve_recipe(find_recipe(context.partition_key))


def resources(home: Path) -> dict[str, Any]:
    """Everything in one folder, as a working copy has it; MLFLOW_TRACKING_URI leads to a server instead.

    BERT_PIPELINE_DAGSTER_URL and BERT_PIPELINE_MLFLOW_URL: where people reach the pages, for links.
    """
    mlflow = Mlflow(
        tracking_uri=settings.mlflow_tracking_uri(home),
        artifacts=str(home / "mlartifacts"),
        ui=settings.mlflow_url(home),
    )
    places = {"store": str(home / "artifacts"), "pointers": str(home / "pointers")}
    return {
        "workshop": Workshop(**places, dagster_ui=settings.dagster_url(), mlflow=mlflow),
        "artifacts": ArtifactIOManager(**places),
    }
