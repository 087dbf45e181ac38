"""The asset `study`. Its partitions are studies; each is built from the evaluations of the study's recipes."""

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
ITS_RECIPES = dg.StaticPartitionMapping(
    {recipe: study for study, recipes in recipes_of_studies().items() for recipe in recipes}
)


@dg.asset(
    partitions_def=studies,
    deps=[dg.AssetDep("evaluations", partition_mapping=ITS_RECIPES)],
    group_name="evaluation",
    kinds={"mlflow", "html"},
    owners=OWNERS,
    code_version=CODE_VERSION,
)
def study(context: dg.AssetExecutionContext, workshop: Workshop) -> dg.MaterializeResult:
    """The page of a study: scores of its arms with intervals, differences, losses, and what can be concluded.

    Fails with the list of missing recipes until all of them are evaluated. To run them one after the other, launch a
    backfill of `evaluations` with its upstream assets for the partitions `STUDY--...`.
    """
    with library_log_in(context.log):
        made = make_study(context.partition_key, Path(workshop.store))
        links = track_study(workshop, context, made)
    return dg.MaterializeResult(
        metadata={
            "answer": dg.MetadataValue.md("".join(f"- {sentence}\n" for sentence in made.facts["answer"])),
            "page": dg.MetadataValue.md(_with_pictures(made.path)),
            "page_file": dg.MetadataValue.path(str(made.path / PAGE)),
            **links,
            "fingerprint": made.fingerprint,
            "path": dg.MetadataValue.path(str(made.path)),
        },
        data_version=dg.DataVersion(made.fingerprint),
    )


def _with_pictures(folder: Path) -> str:
    """The page as Markdown with embedded pictures."""
    text = (folder / TEXT).read_text(encoding="utf-8")
    for file in PICTURES.values():
        encoded = base64.b64encode((folder / file).read_bytes()).decode()
        text = text.replace(f"({file})", f"(data:image/png;base64,{encoded})")
    return text
