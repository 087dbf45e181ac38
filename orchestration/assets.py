"""The assets of the graph, in build order: each function's parameters are the assets it is built from.

A partition is a recipe. Each asset runs a stage of bert_pipeline; checks.py has its gates. One function owns the assets
of all evaluation tasks and builds those that the recipe lists. Stage assets have no return annotation: with checks,
Dagster 1.13 takes an annotation `MaterializeResult` to mean that nothing is passed to the next asset.
"""

from collections.abc import Callable

import dagster as dg

from bert_pipeline.evaluation.tasks.task import find_task, task_files
from bert_pipeline.experiments import recipe_names
from bert_pipeline.stages import EVALUATION, STAGES, find_stage
from bert_pipeline.store.artifact import Artifact
from bert_pipeline.study import SEPARATOR
from orchestration.checks import asset_key, check_specs
from orchestration.conditions import FRESH_WITHIN_A_WEEK, ON_NEW_CONTENT
from orchestration.registry import versions
from orchestration.registry.champion import CODE_VERSION as CHAMPION_VERSION
from orchestration.workshop import Workshop

recipes = dg.StaticPartitionsDefinition(sorted(recipe_names(), key=lambda name: (SEPARATOR in name, name)))
"""The recipes of studies come last: there are dozens of them."""
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
    """Declare the asset of a stage; the function has the name of the stage."""

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


@stage("data", "parquet", freshness=FRESH_WITHIN_A_WEEK)
def raw_corpus(context: Context, workshop: Workshop):
    """The cleaned text corpus: documents as lists of sentences, in Parquet shards for training and for held-out text.

    Reads the files or the PubMed mirror that the recipe names, cleans them, and drops duplicates, other languages and
    text of excluded evaluation tasks as the recipe says. The data card in the metadata shows what was kept and dropped.
    """
    return workshop.make(context)


@stage("data", "jsonl", condition=ON_NEW_CONTENT)
def contamination(context: Context, workshop: Workshop, raw_corpus: Artifact):
    """Report of the documents in the corpus that contain text of the evaluation sets.

    To remove such documents, set `corpus.exclude_tasks` in the recipe and build the corpus again.
    """
    return workshop.make(context, raw_corpus=raw_corpus)


@stage("data", "huggingface")
def tokenizer(context: Context, workshop: Workshop, raw_corpus: Artifact):
    """The WordPiece vocabulary learnt from the corpus, as a directory that `AutoTokenizer` loads.

    A recipe with `pretrain.init_from` takes the vocabulary of its initial model instead.
    """
    return workshop.make(context, raw_corpus=raw_corpus)


@stage("data", "arrow", condition=ON_NEW_CONTENT)
def nsp_dataset(context: Context, workshop: Workshop, raw_corpus: Artifact, tokenizer: Artifact):
    """Tokenized pairs of text segments: the second follows the first, or comes from another document."""
    return workshop.make(context, raw_corpus=raw_corpus, tokenizer=tokenizer)


@stage("data", "arrow", condition=ON_NEW_CONTENT)
def masked_dataset(context: Context, workshop: Workshop, tokenizer: Artifact, nsp_dataset: Artifact):
    """The pairs of `nsp_dataset` with a share of their tokens masked, for masked-language-model training."""
    return workshop.make(context, tokenizer=tokenizer, nsp_dataset=nsp_dataset)


@stage("training", "pytorch", "huggingface", "mlflow", pool="training")
def pretrained_checkpoint(
    context: Context, workshop: Workshop, tokenizer: Artifact, nsp_dataset: Artifact, masked_dataset: Artifact
):
    """The BERT trained on masked tokens and next sentences, as a directory that `from_pretrained` loads.

    Training starts from scratch, or from the model in `pretrain.init_from`. Metrics appear live in MLflow. A run that
    was stopped resumes from its last checkpoint when you materialize this asset again.
    """
    return workshop.make(context, tokenizer=tokenizer, nsp_dataset=nsp_dataset, masked_dataset=masked_dataset)


TASKS = {EVALUATION + name: find_task(name) for name in sorted(task_files())}
"""All evaluation tasks, by the kind of their artifact."""


def _evaluated(kind: str, group: str, description: str) -> dg.AssetOut:
    return dg.AssetOut(
        key=asset_key(kind),
        description=description,
        is_required=False,  # a recipe lists some of the tasks
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
                kind,
                "evaluation_tasks",
                f"{task.title}: {task.metric} after fine-tuning the checkpoint, and random weights as a baseline.",
            )
            for kind, task in TASKS.items()
        },
        "evaluations": _evaluated(
            "evaluations", "evaluation", "Summary of all tasks of the recipe, the held-out losses, and the BLURB score."
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
    """Fine-tune and score the checkpoint on each selected task of the recipe, and summarize all tasks."""
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
    """A version of the recipe's model in MLflow's registry, with scores, lineage and model card; alias `candidate`.

    Evaluates the gates of all assets before it again, and registers nothing if one fails.
    """
    return workshop.register(context, pretrained_checkpoint, evaluations)


@dg.asset(
    partitions_def=recipes,
    deps=[registered_model],
    group_name="registry",
    kinds={"mlflow"},
    owners=OWNERS,
    code_version=CHAMPION_VERSION,
    check_specs=check_specs("champion", recipes),
    freshness_policy=FRESH_WITHIN_A_WEEK,
)
def champion(context: Context, workshop: Workshop) -> dg.MaterializeResult:
    """The version in service (alias `champion`), and the comparison of the newest version with it.

    A recipe with `registry.promote = "if_better"` promotes a better version by itself. Otherwise the metadata shows the
    command that promotes it: `bert-pipeline promote`.
    """
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
