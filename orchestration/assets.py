"""The graph: what is made, and from what. Read the signatures from top to bottom.

A partition is a recipe. The work of each asset is a stage of bert_pipeline, its gates stand in checks.py.
An asset of a stage has no return annotation: where there are checks, Dagster 1.13 reads `MaterializeResult` as
"hands nothing on".
"""

from collections.abc import Callable

import dagster as dg

from bert_pipeline.artifact import Artifact
from bert_pipeline.recipe import recipe_files
from bert_pipeline.stages import STAGES
from orchestration import registry
from orchestration.checks import check_specs
from orchestration.workshop import Workshop

recipes = dg.StaticPartitionsDefinition(sorted(recipe_files()))
OWNERS = ["team:nlp"]

Context = dg.AssetExecutionContext


def stage(group: str, *kinds: str, pool: str | None = None) -> Callable[[Callable], dg.AssetsDefinition]:
    """An asset that one stage of the library makes; the function's name is the stage's."""

    def declare(function: Callable) -> dg.AssetsDefinition:
        return dg.asset(
            partitions_def=recipes,
            group_name=group,
            kinds=set(kinds),
            owners=OWNERS,
            pool=pool,
            code_version=STAGES[function.__name__].code_version,
            check_specs=check_specs(function.__name__),
            io_manager_key="artifacts",
        )(function)

    return declare


@stage("data", "parquet")
def raw_corpus(context: Context, workshop: Workshop):
    """Documents as lists of sentences, in training and held-out shards."""
    return workshop.make(context)


@stage("data", "huggingface")
def tokenizer(context: Context, workshop: Workshop, raw_corpus: Artifact):
    """The WordPiece vocabulary of the corpus, as a tokenizer that `AutoTokenizer` loads."""
    return workshop.make(context, raw_corpus=raw_corpus)


@stage("data", "arrow")
def nsp_dataset(context: Context, workshop: Workshop, raw_corpus: Artifact, tokenizer: Artifact):
    """Pairs of segments: the second follows the first, or comes from another document."""
    return workshop.make(context, raw_corpus=raw_corpus, tokenizer=tokenizer)


@stage("data", "arrow")
def masked_dataset(context: Context, workshop: Workshop, tokenizer: Artifact, nsp_dataset: Artifact):
    """The same pairs with a share of their tokens hidden, for the model to guess."""
    return workshop.make(context, tokenizer=tokenizer, nsp_dataset=nsp_dataset)


@stage("training", "pytorch", "huggingface", "mlflow", pool="training")
def pretrained_checkpoint(
    context: Context, workshop: Workshop, tokenizer: Artifact, nsp_dataset: Artifact, masked_dataset: Artifact
):
    """A BERT trained from scratch on both tasks, as a directory that `from_pretrained` loads."""
    return workshop.make(context, tokenizer=tokenizer, nsp_dataset=nsp_dataset, masked_dataset=masked_dataset)


@stage("evaluation", "pytorch", "mlflow", pool="training")
def evaluations(
    context: Context,
    workshop: Workshop,
    nsp_dataset: Artifact,
    masked_dataset: Artifact,
    pretrained_checkpoint: Artifact,
):
    """Held-out losses, and fine-tuning scores beside the same architecture from random initialisation."""
    return workshop.make(
        context,
        nsp_dataset=nsp_dataset,
        masked_dataset=masked_dataset,
        pretrained_checkpoint=pretrained_checkpoint,
    )


@dg.asset(
    partitions_def=recipes,
    group_name="registry",
    kinds={"mlflow", "huggingface"},
    owners=OWNERS,
    code_version=registry.CODE_VERSION,
    ins={name: dg.AssetIn(input_manager_key="artifacts") for name in ("pretrained_checkpoint", "evaluations")},
)
def registered_model(
    context: Context, workshop: Workshop, pretrained_checkpoint: Artifact, evaluations: Artifact
) -> dg.MaterializeResult:
    """A version of the recipe's model in MLflow's registry, alias `candidate`, with scores, lineage and card."""
    return workshop.register(context, pretrained_checkpoint, evaluations)


ASSETS = [raw_corpus, tokenizer, nsp_dataset, masked_dataset, pretrained_checkpoint, evaluations, registered_model]
