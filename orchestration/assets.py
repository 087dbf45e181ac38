"""The graph: what is made, and from what. Read the signatures from top to bottom.

A partition is a recipe. The work of each asset is a stage of bert_pipeline, its gates stand in checks.py.
The tasks of the evaluation are assets of one function, which makes those that the recipe asks for.
An asset of a stage has no return annotation: where there are checks, Dagster 1.13 reads `MaterializeResult` as
"hands nothing on".
"""

from collections.abc import Callable

import dagster as dg

from bert_pipeline.evaluation.tasks.task import find_task, task_files
from bert_pipeline.recipe_files import recipe_files
from bert_pipeline.stages import EVALUATION, STAGES, find_stage
from bert_pipeline.store.artifact import Artifact
from orchestration.checks import asset_key, check_specs
from orchestration.conditions import LOOKED_AT_EVERY_WEEK, ON_NEW_CONTENT
from orchestration.registry import versions
from orchestration.registry.champion import CODE_VERSION as CHAMPION_VERSION
from orchestration.workshop import Workshop

recipes = dg.StaticPartitionsDefinition(sorted(recipe_files()))
OWNERS = ["team:nlp"]

Context = dg.AssetExecutionContext


def output_name(kind: str) -> str:
    return kind.replace("/", "__").replace("-", "_")


def stage(
    group: str,
    *kinds: str,
    pool: str | None = None,
    condition: dg.AutomationCondition | None = None,
    freshness: dg.FreshnessPolicy | None = None,
) -> Callable[[Callable], dg.AssetsDefinition]:
    """An asset that one stage of the library makes; the function's name is the stage's."""

    def declare(function: Callable) -> dg.AssetsDefinition:
        return dg.asset(
            partitions_def=recipes,
            group_name=group,
            kinds=set(kinds),
            owners=OWNERS,
            pool=pool,
            code_version=STAGES[function.__name__].code_version,
            check_specs=check_specs(function.__name__, recipes),
            automation_condition=condition,
            freshness_policy=freshness,
            io_manager_key="artifacts",
        )(function)

    return declare


@stage("data", "parquet", freshness=LOOKED_AT_EVERY_WEEK)
def raw_corpus(context: Context, workshop: Workshop):
    """Documents as lists of sentences, in training and held-out shards."""
    return workshop.make(context)


@stage("data", "jsonl", condition=ON_NEW_CONTENT)
def contamination(context: Context, workshop: Workshop, raw_corpus: Artifact):
    """Which documents of the corpus hold text of the evaluation sets."""
    return workshop.make(context, raw_corpus=raw_corpus)


@stage("data", "huggingface")
def tokenizer(context: Context, workshop: Workshop, raw_corpus: Artifact):
    """The WordPiece vocabulary of the corpus, as a tokenizer that `AutoTokenizer` loads."""
    return workshop.make(context, raw_corpus=raw_corpus)


@stage("data", "arrow", condition=ON_NEW_CONTENT)
def nsp_dataset(context: Context, workshop: Workshop, raw_corpus: Artifact, tokenizer: Artifact):
    """Pairs of segments: the second follows the first, or comes from another document."""
    return workshop.make(context, raw_corpus=raw_corpus, tokenizer=tokenizer)


@stage("data", "arrow", condition=ON_NEW_CONTENT)
def masked_dataset(context: Context, workshop: Workshop, tokenizer: Artifact, nsp_dataset: Artifact):
    """The same pairs with a share of their tokens hidden, for the model to guess."""
    return workshop.make(context, tokenizer=tokenizer, nsp_dataset=nsp_dataset)


@stage("training", "pytorch", "huggingface", "mlflow", pool="training")
def pretrained_checkpoint(
    context: Context, workshop: Workshop, tokenizer: Artifact, nsp_dataset: Artifact, masked_dataset: Artifact
):
    """A BERT trained from scratch on both tasks, as a directory that `from_pretrained` loads."""
    return workshop.make(context, tokenizer=tokenizer, nsp_dataset=nsp_dataset, masked_dataset=masked_dataset)


TASKS = {EVALUATION + name: find_task(name) for name in sorted(task_files())}
"""What can be evaluated, by the kind of its artifact."""


def _evaluated(kind: str, group: str, description: str) -> dg.AssetOut:
    return dg.AssetOut(
        key=asset_key(kind),
        description=description,
        is_required=False,  # a recipe asks for some tasks, not for all
        group_name=group,
        kinds={"pytorch", "mlflow"},
        owners=OWNERS,
        code_version=find_stage(kind).code_version,
        io_manager_key="artifacts",
    )


@dg.multi_asset(
    partitions_def=recipes,
    outs={
        **{
            output_name(kind): _evaluated(
                kind, "evaluation_tasks", f"{task.title}: {task.metric} after fine-tuning, beside random weights."
            )
            for kind, task in TASKS.items()
        },
        "evaluations": _evaluated(
            "evaluations", "evaluation", "All tasks of the recipe, held-out losses, and the BLURB score."
        ),
    },
    internal_asset_deps={
        **{output_name(kind): {asset_key("pretrained_checkpoint")} for kind in TASKS},
        "evaluations": {asset_key(kind) for kind in (*STAGES["evaluations"].inputs, *TASKS)},
    },
    deps=[asset_key(kind) for kind in STAGES["evaluations"].inputs if kind != "pretrained_checkpoint"],
    check_specs=[spec for kind in (*TASKS, "evaluations") for spec in check_specs(kind, recipes)],
    can_subset=True,
    pool="training",
)
def evaluation(context: Context, workshop: Workshop, pretrained_checkpoint: Artifact):
    """The tasks that the recipe asks for, each an asset of its own, and their summary."""
    yield from workshop.evaluate(context, pretrained_checkpoint)


@dg.asset(
    partitions_def=recipes,
    group_name="registry",
    kinds={"mlflow", "huggingface"},
    owners=OWNERS,
    code_version=versions.CODE_VERSION,
    check_specs=check_specs("registered_model", recipes),
    ins={name: dg.AssetIn(input_manager_key="artifacts") for name in ("pretrained_checkpoint", "evaluations")},
)
def registered_model(
    context: Context, workshop: Workshop, pretrained_checkpoint: Artifact, evaluations: Artifact
) -> dg.MaterializeResult:
    """A version of the recipe's model in MLflow's registry, alias `candidate`, with scores, lineage and card."""
    return workshop.register(context, pretrained_checkpoint, evaluations)


@dg.asset(
    partitions_def=recipes,
    deps=[registered_model],
    group_name="registry",
    kinds={"mlflow"},
    owners=OWNERS,
    code_version=CHAMPION_VERSION,
    check_specs=check_specs("champion", recipes),
    freshness_policy=LOOKED_AT_EVERY_WEEK,
)
def champion(context: Context, workshop: Workshop) -> dg.MaterializeResult:
    """The version that serves (alias `champion`), and whether the newest one should take its place."""
    return workshop.champion(context)


ASSETS = [
    raw_corpus,
    contamination,
    tokenizer,
    nsp_dataset,
    masked_dataset,
    pretrained_checkpoint,
    evaluation,
    registered_model,
    champion,
]
