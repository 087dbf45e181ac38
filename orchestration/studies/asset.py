"""The asset `study`, whose partitions are studies, and the job `study`, which builds the page of one.

The job reports the page as a materialization of the asset, which Dagster itself cannot materialize: otherwise it would
be part of every selection of all assets (`dg launch --assets '*'`, the button "Materialize all"), and Dagster refuses a
selection whose assets have different partitions.
"""

import base64
from pathlib import Path

import dagster as dg

from bert_pipeline.experiments import recipes_of_studies, study_files
from bert_pipeline.studies.build import CODE_VERSION, make_study
from bert_pipeline.studies.page import PAGE, PICTURES, TEXT
from orchestration.assets import OWNERS
from orchestration.studies.tracking import track_study
from orchestration.tracking.logs import library_log_in
from orchestration.workshop import Workshop

studies = dg.StaticPartitionsDefinition(sorted(study_files()))
DATA_VERSION_TAG = "dagster/data_version"
ITS_RECIPES = dg.StaticPartitionMapping(
    {recipe: study for study, recipes in recipes_of_studies().items() for recipe in recipes}
)


study = dg.AssetSpec(
    "study",
    partitions_def=studies,
    deps=[dg.AssetDep("evaluations", partition_mapping=ITS_RECIPES)],
    group_name="evaluation",
    kinds={"mlflow", "html"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    description="The page of a study: scores of its arms with intervals, differences, losses, and what can be "
    "concluded. The job `study` builds it.",
)


@dg.op(out=dg.Out(dg.Nothing))
def build_page(context: dg.OpExecutionContext, workshop: Workshop) -> None:
    """Build the page, send it to MLflow, and report it as a materialization of the asset `study`."""
    with library_log_in(context.log):
        made = make_study(context.partition_key, Path(workshop.store))
        links = track_study(workshop, context, made)
    event = dg.AssetMaterialization(
        study.key,
        partition=context.partition_key,
        metadata={
            "answer": dg.MetadataValue.md("".join(f"- {sentence}\n" for sentence in made.facts["answer"])),
            "page": dg.MetadataValue.md(_with_pictures(made.path)),
            "page_file": dg.MetadataValue.path(str(made.path / PAGE)),
            **links,
            "fingerprint": made.fingerprint,
            "path": dg.MetadataValue.path(str(made.path)),
        },
        tags={DATA_VERSION_TAG: made.fingerprint},
    )
    context.log_event(event)


@dg.job(
    name="study",
    partitions_def=studies,
    description="Build the page of a study. Fails with the list of missing recipes until all of them are evaluated. To "
    "run them one after the other, launch a backfill of `evaluations` with its upstream assets for the partitions "
    "`STUDY--...`.",
)
def study_job() -> None:
    build_page()


def _with_pictures(folder: Path) -> str:
    """The page as Markdown with embedded pictures."""
    text = (folder / TEXT).read_text(encoding="utf-8")
    for file in PICTURES.values():
        encoded = base64.b64encode((folder / file).read_bytes()).decode()
        text = text.replace(f"({file})", f"(data:image/png;base64,{encoded})")
    return text
