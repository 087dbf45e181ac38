"""`bert-pipeline`: each stage by itself, from explicit directories to an explicit directory.

No orchestrator and no tracker is needed. Progress goes to standard error; `--json` prints what was made
to standard output, for machines. Other packages add commands by the entry point group `bert_pipeline.commands`:
each is a function that is given the sub-parsers, and imports what is heavy only when its command runs.
"""

import argparse
import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from bert_pipeline import remote_commands
from bert_pipeline.core.printable import log_to_stderr, one_record
from bert_pipeline.recipe import EvaluationRecipe, Recipe
from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.settings import home, store
from bert_pipeline.stages import STAGES, make_stage
from bert_pipeline.store import artifact

COMMANDS = {
    "raw-corpus": "raw_corpus",
    "contamination": "contamination",
    "tokenizer": "tokenizer",
    "nsp-dataset": "nsp_dataset",
    "masked-dataset": "masked_dataset",
    "pretrain": "pretrained_checkpoint",
}

PLUGINS = "bert_pipeline.commands"

ASKED_OF_TASKS = ("profile", "learning_rate", "batch_size", "num_epochs", "max_seq_length", "other_data")
"""Options of `evaluate` that are fields of TaskRecipe."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 an error that is told in one line."""
    options = _parser().parse_args(arguments)
    log_to_stderr()
    try:
        options.run(options)
    except ModuleNotFoundError as missing:
        remedy = "install it; 'bert-pipeline[orchestration]' brings dagster and mlflow"
        print(one_record(f"bert-pipeline {options.command}: {missing}; remedy: {remedy}"), file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        print(one_record(f"bert-pipeline {options.command}: {error}"), file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bert-pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, kind in COMMANDS.items():
        made_from = ", ".join(STAGES[kind].inputs) or "the recipe's files"
        stage = commands.add_parser(command, help=f"make a {kind} from {made_from}")
        stage.add_argument("--recipe", required=True, help="a recipe file, or the name of a packaged one")
        for name in STAGES[kind].inputs:
            stage.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True, metavar="DIR")
        stage.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory to make")
        stage.add_argument("--json", action="store_true", help="print the record of what was made")
        stage.set_defaults(run=_make, kind=kind)

    plan = commands.add_parser("plan", help="tell what a recipe takes, before anything runs; refuse what cannot fit")
    plan.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a packaged one")
    plan.add_argument("--hardware", metavar="NAME", help="time of the training on this alone (default: all known)")
    plan.add_argument("--workers", type=int, metavar="N", help="of the data stages (default: BERT_PIPELINE_WORKERS)")
    plan.add_argument("--json", action="store_true")
    plan.set_defaults(run=_plan)

    evaluate = commands.add_parser("evaluate", help="fine-tune and score any Hugging Face BERT on tasks")
    evaluate.add_argument("--list", action="store_true", help="list the tasks and whether their data is at hand")
    evaluate.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face model directory")
    evaluate.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="one of those that --list lists; may be repeated"
    )
    evaluate.add_argument("--data", type=Path, metavar="DIR", help="the files of the one task that is named")
    evaluate.add_argument(
        "--out", type=Path, metavar="DIR", help="where scores and predictions go; what stands is kept"
    )
    evaluate.add_argument("--profile", choices=("quick", "published"), default="quick")
    evaluate.add_argument("--seeds", type=int, metavar="N", help="number of runs (default: the profile's)")
    for flag, number in (("--learning-rate", float), ("--batch-size", int), ("--num-epochs", int)):
        more = "(default: the profile's); of several the best on dev is taken"
        evaluate.add_argument(flag, type=number, nargs="+", metavar="X", help=more)
    evaluate.add_argument("--max-seq-length", type=int, metavar="N", help="(default: the task's)")
    evaluate.add_argument("--other-data", action="store_true", help="take files that are not the benchmark's")
    evaluate.add_argument("--baseline", action="store_true", help="the same architecture from random weights, too")
    evaluate.add_argument("--json", action="store_true", help="print the facts of each task")
    evaluate.set_defaults(run=_evaluate)

    convert = commands.add_parser("convert-bc5cdr", help="make BLURB's BC5CDR files from the original PubTator files")
    convert.add_argument(
        "--pubtator", type=Path, nargs="+", required=True, metavar="PATH", help="their folder, or each"
    )
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="where BC5CDR-chem and -disease go")
    convert.add_argument("--json", action="store_true", help="print the facts")
    convert.set_defaults(run=_convert_bc5cdr)

    download = commands.add_parser("download-blurb", help="fetch what of BLURB's data lies in public places")
    download.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a folder for each set")
    download.add_argument("--task", nargs="+", default=(), metavar="NAME", help="sets by folder name (default: all)")
    download.add_argument("--accept-terms", action="store_true", help="you have read the terms that the command names")
    download.add_argument("--json", action="store_true", help="print the facts")
    download.set_defaults(run=_download_blurb)

    pubmed = commands.add_parser("download-pubmed", help="fetch PubMed's files, or those that came since the last time")
    pubmed.add_argument("--out", type=Path, required=True, metavar="DIR", help="the mirror; what stands there is kept")
    pubmed.add_argument("--base-url", metavar="URL", help="of another mirror (default: NLM's)")
    pubmed.add_argument("--parallel", type=int, default=3, metavar="N", help="connections at once (default: 3)")
    pubmed.add_argument("--json", action="store_true", help="print the facts")
    pubmed.set_defaults(run=_download_pubmed)

    inspect = commands.add_parser("inspect", help="print facts and decoded rows of any artifact")
    inspect.add_argument("directory", type=Path, metavar="DIR")
    inspect.add_argument("--rows", type=int, default=3, metavar="N", help="rows to print (default: 3)")
    inspect.add_argument("--tokenizer", type=Path, metavar="DIR", help="where it does not lie beside the artifact")
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(run=_inspect)

    dropped = commands.add_parser("dropped", help="tell which records are not in a raw_corpus, and why")
    dropped.add_argument("directory", type=Path, metavar="DIR")
    dropped.add_argument("--id", default="", metavar="ID", help="of the document (default: all)")
    dropped.add_argument("--reason", default="", metavar="REASON", help="or a part of it (default: all)")
    dropped.add_argument("--rows", type=int, default=10, metavar="N", help="records to print (default: 10)")
    dropped.add_argument("--json", action="store_true")
    dropped.set_defaults(run=_dropped)
    rebuild = commands.add_parser("rebuild", help="build a model again, bit for bit, from what `reproduce` wrote")
    rebuild.add_argument("folder", type=Path, metavar="DIR", help="what `reproduce` wrote; it is built in the home")
    rebuild.set_defaults(run=_rebuild)
    remote_commands.add(commands)
    _add_commands_of_others(commands)
    return parser


def _add_commands_of_others(commands: Any) -> None:
    for plugin in entry_points(group=PLUGINS):
        try:
            plugin.load()(commands)
        except Exception as error:  # whatever is wrong with it, the other commands work
            print(f"bert-pipeline: without the commands of {plugin.value}: {error}", file=sys.stderr)


def _recipe(name: str) -> Recipe:
    path = Path(name)
    if path.suffix != ".toml" and name in recipe_files():
        path = recipe_files()[name]
    return load_recipe(path)


def _make(options: argparse.Namespace) -> None:
    recipe = _recipe(options.recipe)
    inputs = {name: artifact.load(getattr(options, name), name) for name in STAGES[options.kind].inputs}
    made = make_stage(options.kind, recipe, inputs, options.out)
    if options.json:
        print(json.dumps(dict(made.record) | {"path": str(made.path)}))
    else:
        print(f"{made.kind} {made.fingerprint} in {made.path}")
        _print_facts(made.facts)


def _plan(options: argparse.Namespace) -> None:
    from bert_pipeline.planning.hardware import HARDWARE, find_hardware
    from bert_pipeline.planning.plan import assert_fits, make_plan
    from bert_pipeline.planning.table import show

    recipe = _recipe(options.recipe)
    hardware = {options.hardware: find_hardware(options.hardware)} if options.hardware else HARDWARE
    plan = make_plan(recipe, home(), hardware, options.workers)
    print(json.dumps(plan) if options.json else show(plan))
    assert_fits(plan)


def _list_tasks(as_json: bool) -> None:
    from bert_pipeline.evaluation.tasks.listing import list_tasks, show

    rows = list_tasks()
    print(json.dumps(rows) if as_json else show(rows))


def _evaluate(options: argparse.Namespace) -> None:
    if options.list:
        _list_tasks(options.json)
        return
    if missing := [f"--{name}" for name in ("model", "task", "out") if not getattr(options, name)]:
        raise ValueError(f"{', '.join(missing)} missing; remedy: name them, or see the tasks by --list")
    if options.data and len(options.task) > 1:
        raise ValueError("--data names the files of one task; remedy: one --task, or BERT_PIPELINE_DATA for all")
    from bert_pipeline.evaluation.evaluate import evaluate_task
    from bert_pipeline.evaluation.scoring.table import show_scores
    from bert_pipeline.evaluation.tasks.readers import read_task
    from bert_pipeline.evaluation.tasks.task import find_task, load_task, task_files, task_folder

    for name in options.task:  # before hours go into the first of them
        task = find_task(name)
        if not task.generated:
            read_task(task, task_folder(task, options.data, options.out), options.other_data)
    asked = {name: getattr(options, name) for name in ASKED_OF_TASKS}
    asked["seeds"] = None if options.seeds is None else [*range(1, options.seeds + 1)]
    tasks = [{"name": name} | asked for name in options.task]
    section = EvaluationRecipe.model_validate_json(json.dumps({"tasks": tasks}))
    facts = {
        settings.name: evaluate_task(
            settings, options.model, options.data, options.out / settings.name, lambda row: None, options.baseline
        )
        for settings in section.tasks
    }
    if options.json:
        print(json.dumps(facts))
    else:
        print(show_scores(facts, {name: load_task(path) for name, path in task_files().items()}))
        print(f"every run: {options.out}/*/scores.json")


def _convert_bc5cdr(options: argparse.Namespace) -> None:
    from bert_pipeline.evaluation.tasks.pubtator import convert_bc5cdr

    facts = convert_bc5cdr(options.pubtator, options.out)
    print(json.dumps(facts)) if options.json else _print_facts(facts)


def _download_blurb(options: argparse.Namespace) -> None:
    from bert_pipeline.evaluation.tasks.download import download_blurb

    facts = download_blurb(options.out, options.task, options.accept_terms)
    print(json.dumps(facts)) if options.json else _print_facts(facts)


def _download_pubmed(options: argparse.Namespace) -> None:
    from bert_pipeline.data.sources.pubmed.mirror import BASE_URL, download_pubmed

    facts = download_pubmed(options.out, options.base_url or BASE_URL, options.parallel)
    print(json.dumps(facts)) if options.json else _print_facts(facts)


def _inspect(options: argparse.Namespace) -> None:
    from bert_pipeline.report.inspection import inspect

    found = inspect(options.directory, options.tokenizer, options.rows)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['kind']} {found['fingerprint']}, made {found['made']['at']} in {found['made']['seconds']} s")
    _print_facts(found["facts"])
    for row in found["rows"]:
        print()
        print(json.dumps(row, indent=2, ensure_ascii=False))


def _dropped(options: argparse.Namespace) -> None:
    from bert_pipeline.data.corpus.dropped import Query, find_dropped, show

    found = find_dropped(options.directory, Query(options.id, options.reason), options.rows)
    print(json.dumps(found) if options.json else show(found, full_text=bool(options.id)))


def _rebuild(options: argparse.Namespace) -> None:
    from bert_pipeline.reproduction import rebuild

    for kind, made in rebuild(options.folder, store()).items():
        print(f"{kind} {made.fingerprint} in {made.path}")
    print("bit for bit what it was")


def _print_facts(facts: dict[str, Any], indent: str = "  ") -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print_facts(value, indent + "  ")
        else:
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
            print(f"{indent}{name}: {shown}")


if __name__ == "__main__":
    sys.exit(main())
