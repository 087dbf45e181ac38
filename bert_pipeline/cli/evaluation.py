"""`evaluate`, `finetune` and `predict`: score any Hugging Face BERTs on tasks, keep a task model, apply it to texts."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from bert_pipeline.cli.models import model_directory, short_names
from bert_pipeline.cli.options import EVALUATE
from bert_pipeline.cli.output import show, show_json

if TYPE_CHECKING:
    from bert_pipeline.recipe import TaskRecipe

log = logging.getLogger(__name__)

GRID = "Of several values, the best on dev is used."
OF_PROFILE = "the profile's"
OF_TASK = "the task's"


def _inputs(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Inputs and output", **settings)


def _tuning(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Fine-tuning", **settings)


Models = Annotated[
    list[str] | None,
    _inputs(
        "--model",
        metavar="MODEL...",
        help="Hugging Face model directory, or models:/NAME@ALIAS or models:/NAME/VERSION. Several are compared.",
    ),
]
Tasks = Annotated[list[str] | None, _inputs("--task", metavar="NAME...", help="Tasks to run, see --list.")]
Out = Annotated[
    Path | None, _inputs(metavar="DIR", help="Directory for scores and predictions; finished runs in it are kept.")
]
Data = Annotated[
    Path | None,
    _inputs(metavar="DIR", help="Files of the task, if one task is run.", show_default="found in BERT_PIPELINE_DATA"),
]
OtherData = Annotated[bool, _inputs("--other-data", help="Accept files that differ from the benchmark's.")]
Baseline = Annotated[bool, _inputs("--baseline", help="Also fine-tune the same architecture from random weights.")]
Profile = Annotated[
    Literal["quick", "published"],
    _tuning(help="quick: one setting, one seed; published: the grid and seeds of BLURB's authors."),
]
Seeds = Annotated[int | None, _tuning(metavar="N", help="Runs per task, with seeds 1 to N.", show_default=OF_PROFILE)]
LearningRate = Annotated[
    list[float] | None, _tuning(metavar="X...", help=f"Peak learning rate. {GRID}", show_default=OF_PROFILE)
]
BatchSize = Annotated[
    list[int] | None, _tuning(metavar="N...", help=f"Examples per step. {GRID}", show_default=OF_PROFILE)
]
NumEpochs = Annotated[list[int] | None, _tuning(metavar="N...", help=f"Epochs. {GRID}", show_default=OF_PROFILE)]
MaxSeqLength = Annotated[
    int | None, _tuning(metavar="N", help="Maximum input length in tokens.", show_default="the task's")
]
Plan = Annotated[
    bool, typer.Option("--plan", help="Time a few steps, print how long the evaluation will take, and run nothing.")
]
ListTasks = Annotated[
    bool, typer.Option("--list", help="List all tasks, their published scores and whether their data is found.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the facts of each task as JSON.")]


def add(app: typer.Typer) -> None:
    for command in (evaluate, finetune, predict):
        app.command(rich_help_panel=EVALUATE)(command)


def evaluate(
    models: Models = None,
    tasks: Tasks = None,
    out: Out = None,
    data: Data = None,
    other_data: OtherData = False,
    baseline: Baseline = False,
    profile: Profile = "quick",
    seeds: Seeds = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    num_epochs: NumEpochs = None,
    max_seq_length: MaxSeqLength = None,
    plan: Plan = False,
    list_tasks: ListTasks = False,
    as_json: Json = False,
) -> None:
    """Fine-tune Hugging Face BERTs on tasks and score them on the test sets; compare several models."""
    if list_tasks:
        _list_tasks(as_json)
        return
    if not models or not tasks or out is None:
        missing = [name for name, value in (("--model", models), ("--task", tasks), ("--out", out)) if not value]
        raise ValueError(f"{', '.join(missing)} missing; remedy: add it; --list shows the tasks")
    settings: dict[str, Any] = {
        "profile": profile,
        "learning_rate": learning_rate or None,
        "batch_size": batch_size or None,
        "num_epochs": num_epochs or None,
        "max_seq_length": max_seq_length,
        "other_data": other_data,
        "seeds": None if seeds is None else [*range(1, seeds + 1)],
    }
    jobs = _jobs(models, tasks, data, out, settings)
    if plan:
        _plan(jobs, data, baseline, as_json)
        return
    evaluated = _evaluate(jobs, data, baseline)
    if len(evaluated) > 1:
        _compare(evaluated, out, as_json)
        return
    [facts] = evaluated.values()
    if as_json:
        show_json(facts)
        return
    from bert_pipeline.evaluation.scoring.table import show_scores
    from bert_pipeline.evaluation.tasks.task import load_task, task_files

    known = {name: load_task(path) for name, path in task_files().items()}
    show(show_scores(facts, known), f"scores of every run: {out}/*/scores.json")


def finetune(
    model: Annotated[
        str,
        _inputs(metavar="MODEL", help="Hugging Face model directory, or models:/NAME@ALIAS or models:/NAME/VERSION."),
    ],
    task: Annotated[str, _inputs(metavar="NAME", help="Task to fine-tune on, see evaluate --list.")],
    out: Annotated[Path, _inputs(metavar="DIR", help="Directory to write the task model to.")],
    data: Data = None,
    other_data: OtherData = False,
    evaluation: Annotated[
        str | None,
        _inputs(
            metavar="DIR",
            help="Evaluation of this model on this task, or models:/NAME@ALIAS: repeat its best run on dev.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, _tuning(metavar="N", help="Seed.")] = 1,
    learning_rate: Annotated[
        float | None, _tuning(metavar="X", help="Peak learning rate.", show_default=OF_TASK)
    ] = None,
    batch_size: Annotated[int | None, _tuning(metavar="N", help="Examples per step.", show_default=OF_TASK)] = None,
    num_epochs: Annotated[int | None, _tuning(metavar="N", help="Epochs.", show_default=OF_TASK)] = None,
    max_seq_length: MaxSeqLength = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts of the task model as JSON.")] = False,
) -> None:
    """Fine-tune a Hugging Face BERT on a task once and keep the task model.

    transformers' pipelines and `predict` read the directory; `register` adds it to MLflow's registry.
    """
    from bert_pipeline.evaluation.task_models.build import best_run, build_task_model
    from bert_pipeline.recipe import TaskRecipe

    directory = model_directory(model)
    chosen = {
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "num_epochs": num_epochs,
        "max_seq_length": max_seq_length,
    }
    if evaluation:
        if given := [name for name, value in (chosen | {"seed": seed != 1}).items() if value]:
            raise ValueError(f"--evaluation decides {', '.join(given)}; remedy: remove one of the options")
        settings = best_run(model_directory(evaluation, "evaluation", task), task, directory)
    else:
        values = {name: value for name, value in chosen.items() if value is not None}
        settings = TaskRecipe.model_validate_json(
            json.dumps({"name": task, "seeds": [seed], "other_data": other_data} | values)
        )
    made = build_task_model(settings, directory, data, out)
    if as_json:
        show_json(made.facts)
        return
    scores = ", ".join(f"{split} {100 * made.facts[split]['score']:.2f}" for split in ("dev", "test"))
    show(
        f"task model of {task} in {made.path}: {made.facts['metric']} {scores} (percent), seed {made.facts['seed']}",
        f"apply it: bert-pipeline predict --model {made.path} --text FILE",
    )


def predict(
    model: Annotated[
        str, _inputs(metavar="MODEL", help="Directory of a task model, or models:/NAME@ALIAS or models:/NAME/VERSION.")
    ],
    text: Annotated[
        str,
        _inputs(metavar="FILE", help="File or folder, as in a recipe's corpus.path. .txt: texts between blank lines."),
    ],
    out: Annotated[Path | None, _inputs(metavar="FILE", help="File to write.", show_default="standard output")] = None,
    text_field: Annotated[
        list[str] | None,
        _inputs(metavar="NAME...", help="Fields of a record to read.", show_default="text; qa: question text"),
    ] = None,
    id_field: Annotated[
        str, _inputs(metavar="NAME", help="Field with the id of a record.", show_default="FILE:NUMBER")
    ] = "",
) -> None:
    """Apply a task model to texts: write a JSON line with spans, labels or a value for each record."""
    from bert_pipeline.core.files import replacing
    from bert_pipeline.data.sources.folders import find_files
    from bert_pipeline.evaluation.task_models.predict import load_annotator, predict_files

    if out and out.exists() and not out.is_file():
        raise ValueError(f"{out} is not a regular file; remedy: leave --out out and redirect the standard output")
    directory = model_directory(model, "task_model")
    answers = predict_files(load_annotator(directory), find_files(text), tuple(text_field or ()), id_field)
    if out is None:
        for answer in answers:
            show_json(answer)
        return
    with replacing(out) as draft, draft.open("w", encoding="utf-8") as file:
        count, broken = 0, 0
        for answer in answers:
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            count, broken = count + 1, broken + ("error" in answer)
    show(f"{count:,} answers in {out}" + (f", {broken:,} of them errors" if broken else ""))


def _compare(evaluated: dict[str, dict[str, dict[str, Any]]], out: Path, as_json: bool) -> None:
    from bert_pipeline.evaluation.comparison import CAPTION, compare_models, comparison_table, score_table
    from bert_pipeline.evaluation.comparison import as_json as in_json

    compared = compare_models(evaluated, out)
    if as_json:
        show_json({"models": evaluated, "comparisons": in_json(compared)})
    else:
        where = f"tables and picture: {out}/comparison.md, {out}/comparison.png"
        show(score_table(evaluated), comparison_table(compared), CAPTION, where)


def _list_tasks(as_json: bool) -> None:
    from bert_pipeline.evaluation.tasks.listing import list_tasks
    from bert_pipeline.evaluation.tasks.listing import show as tasks_for_people

    rows = list_tasks()
    if as_json:
        show_json(rows)
    else:
        show(tasks_for_people(rows))


class Job(NamedTuple):
    """One model on one task."""

    model: str
    directory: Path
    settings: "TaskRecipe"
    out: Path


def _jobs(models: list[str], tasks: list[str], data: Path | None, out: Path, settings: dict[str, Any]) -> list[Job]:
    """Find faults in every model and task before the first one trains for hours. `settings`: fields of TaskRecipe."""
    if data and len(tasks) > 1:
        raise ValueError("--data names the files of one task; remedy: one --task, or BERT_PIPELINE_DATA for all")
    from bert_pipeline.evaluation.finetuning.protocol import max_positions
    from bert_pipeline.evaluation.tasks.readers import read_task
    from bert_pipeline.evaluation.tasks.task import find_task, task_folder
    from bert_pipeline.recipe import EvaluationRecipe

    for name in tasks:
        task = find_task(name)
        if not task.generated:
            read_task(task, task_folder(task, data, out), settings["other_data"])
    recipe = {"tasks": [{"name": name} | settings for name in tasks]}
    chosen = EvaluationRecipe.model_validate_json(json.dumps(recipe)).tasks
    directories = {name: model_directory(model) for name, model in zip(short_names(models), models, strict=True)}
    for directory in directories.values():
        max_positions(directory)
    return [
        Job(name, directory, each, (out / name if len(models) > 1 else out) / each.name)
        for name, directory in directories.items()
        for each in chosen
    ]


def _evaluate(jobs: list[Job], data: Path | None, baseline: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """The facts by model and task."""
    from bert_pipeline.evaluation.evaluate import evaluate_task

    evaluated: dict[str, dict[str, dict[str, Any]]] = {}
    for number, job in enumerate(jobs, start=1):
        if len(jobs) > 1:
            log.info("%d of %d: %s on %s", number, len(jobs), job.model, job.settings.name)
        facts = evaluate_task(job.settings, job.directory, data, job.out, lambda row: None, baseline)
        evaluated.setdefault(job.model, {})[job.settings.name] = facts
    return evaluated


def _plan(jobs: list[Job], data: Path | None, baseline: bool, as_json: bool) -> None:
    from bert_pipeline.evaluation.plan import plan_table, plan_task

    plans = [(job.model, plan_task(job.settings, job.directory, data, job.out, baseline)) for job in jobs]
    if as_json:
        show_json([{"model": model, **each._asdict()} for model, each in plans])
    else:
        show(plan_table(plans))
