import json
import os
from pathlib import Path

import pytest

from bert_pipeline.cli import main
from bert_pipeline.stages import STAGES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe over real files, and a little text in one of them."""
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


def test_each_stage_tells_what_it_made(built, capsys):
    for kind in list(COMMANDS)[:4]:
        code, out, _ = make(capsys, built, kind, "--json")
        record = json.loads(out)
        assert code == 0 and record["origin"]["kind"] == kind and record["path"] == str(built / kind)
    code, out, _ = make(capsys, built, "tokenizer")
    assert "vocab_size: 100" in out


def test_inspect_shows_facts_and_rows_in_words(built, capsys):
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


def test_errors_are_one_clear_line_and_leave_what_stands_whole(built, capsys, tmp_path):
    before = (built / "tokenizer" / "record.json").read_bytes()
    (tmp_path / "bad.toml").write_text('corpus = { path = "x", heldout = 1 }')
    cases = [
        (("raw-corpus", "--recipe", tmp_path / "bad.toml"), "corpus.heldout: unknown key"),
        (("raw-corpus", "--recipe", tmp_path / "none.toml"), "none.toml: no such recipe"),
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


def a_package(folder, name, command, code):
    """One that is installed in `folder`, with a command of `bert-pipeline`."""
    (folder / f"{name}.py").write_text(code)
    about = folder / f"{name}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[bert_pipeline.commands]\n{command} = {name}:add\n")


def test_other_packages_add_commands_and_a_broken_one_is_named(run_python, tmp_path):
    adds = "def add(commands):\n    commands.add_parser('greet', help='says hello').set_defaults(run=run)\n"
    a_package(tmp_path, "whole", "greet", adds + "def run(options):\n    import a_missing_package\n")
    a_package(tmp_path, "broken", "vanish", "import a_missing_package\n")
    places = os.pathsep.join(filter(None, [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH")]))
    asked = run_python("-m", "bert_pipeline.cli", "--help", PYTHONPATH=places)
    assert asked.returncode == 0 and "says hello" in asked.stdout and "masked-dataset" in asked.stdout
    assert "without the commands of broken:add: No module named 'a_missing_package'" in asked.stderr
    ran = run_python("-m", "bert_pipeline.cli", "greet", PYTHONPATH=places)
    assert ran.returncode == 1 and "bert-pipeline greet: No module named" in ran.stderr and "remedy" in ran.stderr


def test_the_commands_of_the_registry_are_listed_without_mlflow_and_dagster(run_python):
    code = (
        "import argparse, sys; from orchestration.commands.lineage import add; "
        "add(argparse.ArgumentParser().add_subparsers()); "
        "sys.exit(bool({'mlflow', 'dagster', 'torch'} & set(sys.modules)))"
    )
    assert run_python("-c", code).returncode == 0
