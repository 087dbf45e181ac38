import inspect
import io
import json
import logging
import os
import re
import sys
from pathlib import Path

import pytest

from bert_pipeline.cli import app, main, stages
from bert_pipeline.cli.commands import several_values
from bert_pipeline.cli.output import facts_table, show
from bert_pipeline.core.progress import Progress
from bert_pipeline.core.tables import Table
from bert_pipeline.stages import STAGES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe for a text file with 60 documents."""
    root = tmp_path_factory.mktemp("cli")
    sentences = "Aspirin relieved pain. It was well tolerated. Patients with angina received atenolol. Dose {}."
    documents = [sentences.format(n) + f" Outcome {n % 7} improved in group {n % 5}." for n in range(60)]
    (root / "text.txt").write_text("\n\n".join(documents))
    (root / "mine.toml").write_text(
        f'corpus = {{ path = "{root}/text.txt", heldout_fraction = 0.2 }}\n'
        "tokenizer = { vocab_size = 100 }\nnsp = { dupe_factor = 1 }\n"
        "model = { hidden_size = 16, num_hidden_layers = 1, num_attention_heads = 2, intermediate_size = 16 }\n"
        "[[pretrain.phases]]\nmax_seq_length = 32\nnum_steps = 2\nglobal_batch_size = 4\n"
        "learning_rate = 1e-3\nwarmup_steps = 1\n"
    )
    return root


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


COMMANDS = {
    "raw_corpus": "raw-corpus",
    "tokenizer": "tokenizer",
    "nsp_dataset": "nsp-dataset",
    "masked_dataset": "masked-dataset",
    "pretrained_checkpoint": "pretrain",
}


def make(capsys, folder, kind, *more):
    inputs = [part for name in STAGES[kind].inputs for part in (f"--{name.replace('_', '-')}", folder / name)]
    return run(capsys, COMMANDS[kind], "--recipe", folder / "mine.toml", *inputs, "--out", folder / kind, *more)


@pytest.fixture(scope="module")
def built(folder):
    for kind in list(COMMANDS)[:4]:
        inputs = [part for name in STAGES[kind].inputs for part in (f"--{name.replace('_', '-')}", str(folder / name))]
        assert main([COMMANDS[kind], "--recipe", str(folder / "mine.toml"), *inputs, "--out", str(folder / kind)]) == 0
    return folder


def test_each_stage_prints_its_artifact(built, capsys):
    for kind in list(COMMANDS)[:4]:
        code, out, _ = make(capsys, built, kind, "--json")
        record = json.loads(out)
        assert code == 0 and record["origin"]["kind"] == kind and record["path"] == str(built / kind)
    code, out, _ = make(capsys, built, "tokenizer")
    assert re.search(r"^fact +value$", out, re.MULTILINE) and re.search(r"^vocab_size +100$", out, re.MULTILINE)


def test_inspect_prints_facts_and_decoded_rows(built, capsys):
    words = {"raw_corpus": "atenolol", "tokenizer": "##", "nsp_dataset": "[SEP]", "masked_dataset": "asked_for"}
    for kind, word in words.items():
        code, out, err = run(capsys, "inspect", built / kind, "--rows", 2)
        assert code == 0 and word in out, err
        code, out, _ = run(capsys, "inspect", built / kind, "--json")
        assert json.loads(out)["kind"] == kind and len(json.loads(out)["rows"]) == 3


def test_pretrain_and_evaluate_by_hand(built, capsys, tmp_path, training_in_a_fork, evaluation_in_this_process):
    code, out, err = make(capsys, built, "pretrained_checkpoint")
    assert code == 0, err
    assert "heldout_after" in out
    code, out, _ = run(capsys, "inspect", built / "pretrained_checkpoint")
    assert code == 0 and "heldout_mlm_loss" in out
    task = tmp_path / "task"
    task.mkdir()
    for split in ("train", "dev", "test"):
        (task / f"{split}.tsv").write_text("Aspirin\tB\nrelieved\tO\npain\tO\n\nIt\tO\nhelped\tO\n\n" * 4)
    arguments = ("--task", "sample-chem", "--data", task, "--seeds", 1, "--num-epochs", 1, "--max-seq-length", 32)
    code, out, err = run(
        capsys, "evaluate", "--model", built / "pretrained_checkpoint", *arguments, "--out", tmp_path / "e", "--json"
    )
    assert code == 0, err
    facts = json.loads(out)
    assert facts["sample-chem"]["gold_size"] == 4 and 0 <= facts["sample-chem"]["pretrained"]["score_mean"] <= 1
    assert (tmp_path / "e" / "sample-chem" / "scores.json").exists()


def test_errors_are_one_line_and_leave_artifacts_unchanged(built, capsys, tmp_path):
    before = (built / "tokenizer" / "record.json").read_bytes()
    (tmp_path / "bad.toml").write_text('corpus = { path = "x", heldout = 1 }')
    cases = [
        (("raw-corpus", "--recipe", tmp_path / "bad.toml"), "corpus.heldout: unknown key"),
        (("raw-corpus", "--recipe", tmp_path / "none.toml"), "none.toml: no such recipe"),
        (("raw-corpus", "--recipe", "none"), "no recipe is named none; remedy: name a known one (bert-base-fast, "),
        (
            ("tokenizer", "--recipe", built / "mine.toml", "--raw-corpus", built / "tokenizer"),
            "holds a tokenizer; a raw_corpus is needed here",
        ),
        (
            ("tokenizer", "--recipe", built / "mine.toml", "--raw-corpus", tmp_path),
            "is no artifact: it has no record.json",
        ),
    ]
    for arguments, expected in cases:
        code, _, err = run(capsys, *arguments, "--out", tmp_path / "out")
        assert code == 1 and expected in err and "Traceback" not in err
        assert not (tmp_path / "out").exists()
    code, _, err = run(
        capsys, "tokenizer", "--recipe", "demo", "--raw-corpus", built / "raw_corpus", "--out", built / "tokenizer"
    )
    assert code == 1 and "holds another tokenizer" in err and "remedy: choose another directory" in err
    assert (built / "tokenizer" / "record.json").read_bytes() == before
    code, _, err = run(capsys, "inspect", tmp_path)
    assert code == 1 and "is no artifact" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenizer", "--recipe", "demo"], "bert-pipeline tokenizer: Missing option '--raw-corpus'"),
        (["inspect", "here", "--rowz", "1"], "bert-pipeline inspect: No such option '--rowz'. Did you mean"),
        (["inspect", "here", "--rows", "many"], "bert-pipeline inspect: Invalid value for '--rows'"),
        (["evaluate", "--profile", "slow"], "bert-pipeline evaluate: Invalid value for '--profile'"),
        (["plann"], "bert-pipeline: No such command 'plann'. Did you mean 'plan'?"),
        ([], "Usage: bert-pipeline"),
    ],
)
def test_usage_errors_exit_with_2(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and err.startswith(message) and not out


def test_help_and_version(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and out == run(capsys, "-h")[1]
    headings = re.findall(r"^([A-Z].*):$", out, re.MULTILINE)
    groups = ["Projects", "Pipeline stages", "Plan and inspect", "Evaluate", "Data", "Models and lineage", "Artifacts"]
    assert headings == [*groups, "Options"]
    for name, command in app.command_line().commands.items():
        code, out, _ = run(capsys, name, "-h")
        assert code == 0 and out.startswith(f"Usage: bert-pipeline {name} ") and command.help
        assert all(parameter.help for parameter in command.params), name
    assert re.fullmatch(r"bert-pipeline \d+\.\d+\.\d+, commit \S+\n", run(capsys, "--version")[1])


def test_a_command_has_the_inputs_of_its_stage():
    names = COMMANDS | {"contamination": "contamination"}
    for kind, command in names.items():
        parameters = inspect.signature(getattr(stages, command.replace("-", "_"))).parameters
        assert tuple(parameters) == ("recipe", *STAGES[kind].inputs, "out", "as_json")


def test_an_option_takes_several_values_in_a_row():
    repeatable = ["--task", "--rate"]
    assert several_values(["--task", "A", "B", "--rate", "1", "2", "--out", "C"], repeatable) == (
        ["--task", "A", "--task", "B", "--rate", "1", "--rate", "2", "--out", "C"]
    )
    arguments = ["--learning-rate", "1e-5", "3e-5", "--task", "A", "--task", "B", "C", "--out", "D"]
    parsed = app.command_line().commands["evaluate"].make_context("evaluate", arguments).params
    assert [*parsed["learning_rate"]] == [1e-5, 3e-5] and [*parsed["tasks"]] == ["A", "B", "C"]
    for unchanged in ("--task A --task B", "--out A B --task C", "--task A -- B", "A B"):
        assert several_values(unchanged.split(), repeatable) == unchanged.split()


def a_package(folder, name, command, code):
    """Install a package in `folder` that adds a command to `bert-pipeline`."""
    (folder / f"{name}.py").write_text(code)
    about = folder / f"{name}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[bert_pipeline.commands]\n{command} = {name}:add\n")


def test_other_packages_add_commands_and_broken_ones_are_reported(run_python, tmp_path):
    greet = "def greet():\n    'Say hello.'\n    import a_missing_package\n\ndef add(app):\n    app.command()(greet)\n"
    a_package(tmp_path, "greeting", "greet", greet)
    a_package(tmp_path, "broken", "vanish", "import a_missing_package\n")
    a_package(tmp_path, "argparsed", "old", "def add(commands):\n    commands.add_parser('old')\n")
    a_package(tmp_path, "taking", "plan", "def add(app):\n    app.command('plan')(lambda: None)\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH")]))
    done = run_python("-m", "bert_pipeline.cli", "--help", PYTHONPATH=path)
    assert done.returncode == 0 and "Say hello." in done.stdout and "masked-dataset" in done.stdout
    for reason in (
        "the commands of broken:add are not available: No module named 'a_missing_package'",
        "the commands of argparsed:add are not available: it adds argparse parsers; remedy: ",
        "the commands of taking:add are not available: plan: a command of this name exists",
    ):
        assert f"bert-pipeline: {reason}" in done.stderr
    done = run_python("-m", "bert_pipeline.cli", "greet", PYTHONPATH=path)
    assert done.returncode == 1 and "bert-pipeline greet: No module named" in done.stderr and "remedy" in done.stderr


def test_a_plugin_whose_signature_typer_refuses_is_left_out(monkeypatch, capsys):
    class Plugin:
        value = "odd:add"

        @staticmethod
        def load():
            def odd(value: dict[str, object]) -> None: ...

            return lambda app: app.command()(odd)

    monkeypatch.setattr(app, "entry_points", lambda group: [Plugin])
    assert main(["--version"]) == 0
    assert "the commands of odd:add are not available: " in capsys.readouterr().err


def test_importing_the_commands_of_the_registry_loads_no_mlflow_and_no_dagster(run_python):
    code = (
        "import sys; from orchestration.commands import lineage, promotion; "
        "from bert_pipeline.cli.app import command_line; assert 'promote' in command_line().commands; "
        "sys.exit(bool({'mlflow', 'dagster', 'torch', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    assert run_python("-c", code).returncode == 0


HOSTILE = Table(("name", "text"), [("a", "[red]b[/red] :smile: \x1b[2J"), ("c" * 100, "[/]")])


def test_a_table_in_a_pipe_is_aligned_text(capsys):
    show(HOSTILE, "\x1b[2J[b]done")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "text"] and set(lines[1]) == {"-"}
    assert lines[2] == "a" + " " * 101 + "[red]b[/red] :smile: \\x1b[2J" and lines[-1] == "\\x1b[2J[b]done"


def test_a_table_in_a_terminal_is_drawn_and_its_text_is_not_interpreted(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    show(HOSTILE)
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "─" in out and "[red]b[/red] :smile: \\x1b[2J" in " ".join(out.split()) and "\x1b" not in out
    assert out.count("c") == 100, "long cells are folded, not cut"


def test_facts_are_a_table():
    facts = {"count": 12345, "loss": 1 / 3, "whole": True, "splits": {"train": 2, "words": []}}
    assert facts_table(facts).rows == [
        ("count", "12,345"), ("loss", "0.3333"), ("whole", "True"), ("splits", ""), ("  train", "2"), ("  words", "[]")
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_terminal_is_a_bar_and_its_last_line_is_logged(monkeypatch):
    from bert_pipeline.cli.progress import progress_on_stderr

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("bert_pipeline.cli.progress.SECONDS_BETWEEN_DRAWINGS", 0.0)
    messages = []
    log = logging.getLogger("bert_pipeline.core.progress")
    monkeypatch.setattr(log, "info", lambda form, *values: messages.append(form % values))
    with progress_on_stderr():
        progress = Progress("stage", 4, "rows")
        for _ in range(4):
            progress.advance()
    drawn = sys.stderr.getvalue()
    assert "stage: 1/4 rows" in drawn and "stage: 3/4 rows" in drawn and "━" in drawn
    assert len(messages) == 1 and messages[0].startswith("stage: 4/4 rows")
