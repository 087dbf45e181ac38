"""The documentation matches the code: its commands run or exist, and every key and variable is explained."""

import json
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import ROOT, blocks, check_out, run, smaller
from links import faults
from reference import commands, pages, sections

from bert_pipeline.evaluation.tasks.task import Task
from bert_pipeline.recipe import Recipe
from bert_pipeline.study import Study

DOCS = ROOT / "docs"
WRITTEN = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
GUIDES = WRITTEN | {"../infra/README.md": (ROOT / "infra" / "README.md").read_text(encoding="utf-8")}
TUTORIAL = blocks(WRITTEN["tutorial.md"])
NOT_RUN = "Not run by the tests: "
COMMANDS = commands()
TOP = "bert_pipeline|orchestration|infra|tests|benchmarks|docs"

SAYS = {
    "operate/scale-out.md": ["H100-SXM"],
    "operate/serve.md": [
        *("champion of bert-mine is version 1", "the first one"),
        *("champion of bert-mine-my-relations is version 1", '{"id": "a", "label": ', "2 answers in answers.jsonl"),
    ],
    "operate/lineage.md": ["raw_corpus", "# Rebuild models:/bert-mine/1"],
    "operate/remote-store.md": ["artifacts are in file://", "[MASK]"],
    "operate/back-up.md": [],
    "operate/retraining.md": ["Started sensor corpus_folder", "Started schedule weekly_retraining"],
    "operate/upgrade.md": [],
}
"""Text that the commands of each page, besides the tutorial, must print."""


@pytest.fixture(scope="module")
def working_copy(tmp_path_factory):
    """One checkout for all pages, like a user's."""
    return check_out(tmp_path_factory.mktemp("checkout"))


# No variable of a clone or of these tests is set; float32, because compiling takes half a minute each time.
SETUP = """\
unset ${!BERT_PIPELINE_@} DAGSTER_HOME
export BERT_PIPELINE_WORKERS=1 BERT_PIPELINE_ACCELERATE_CONFIG=cpu MLFLOW_DISABLE_TELEMETRY=true
"""


def run_as_reader(script: str, copy: Path) -> str:
    return run(SETUP + script, copy, PYTHONPATH=str(copy))


@pytest.fixture(scope="module")
def report(working_copy):
    """Output of the tutorial's first half, from the text to the run. The plan is part of the second half."""
    task, init, recipe, _, run_all, *_ = TUTORIAL
    run_as_reader(task + init + recipe, working_copy)
    written = working_copy / "mine" / "recipes" / "mine.toml"
    written.write_text(smaller(written.read_text(encoding="utf-8")).replace("vocab_size = 800", "vocab_size = 100"))
    return run_as_reader(f"cd mine\n{run_all}", working_copy)


@pytest.fixture(scope="module")
def rest(working_copy, report):
    """Output of the tutorial's second half, whose state the other pages continue from."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    plan, _, *second = TUTORIAL[3:]
    return run_as_reader("".join(["cd mine\n", plan, *second]).replace("8080", port), working_copy)


def test_the_tutorial_brings_text_and_runs(report):
    assert re.search(r"^MLM loss +\d.* \(expected: \d.* to \d.*\)", report, re.MULTILINE)
    assert re.search(r"^my-relations, micro F1 +\d", report, re.MULTILINE)
    assert re.search(r"^bert-mine +1 +none +yes: there was no champion", report, re.MULTILINE)


@pytest.mark.slow
def test_the_tutorial_promotes_serves_and_rebuilds_the_model(rest):
    for text in (
        *(
            "This machine",
            "data_card.html",
            "champion of bert-mine is version 1",
            "first one",
            '"embedding"',
            "token_str",
        ),
        *("Started schedule weekly_retraining", "Stopped schedule weekly_retraining", "bit for bit what it was"),
    ):
        assert text in rest


@pytest.mark.slow
@pytest.mark.parametrize("page", SAYS)
def test_the_commands_of_a_page_run(page, working_copy, rest):
    output = run_as_reader("".join(["cd mine\n", *blocks(WRITTEN[page])]), working_copy)
    assert [text for text in SAYS[page] if text not in output] == []


def test_the_korean_example_runs(tmp_path):
    """In an empty folder: the page needs nothing of the tutorial."""
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    environment = {"PYTHONPATH": ROOT, "BERT_PIPELINE_HOME": tmp_path, "BERT_PIPELINE_DATA": tmp_path}
    script = "".join(blocks(WRITTEN["languages.md"]))
    output = run(script, tmp_path, BERT_PIPELINE_WORKERS="1", **{name: str(path) for name, path in environment.items()})
    last = output.splitlines()[-6:]
    assert last[0] == "[CLS] 환자는 두통을 호소하였다. [SEP] True"
    assert last[1].rstrip("을") in ("두통", "복통", "흉통", "발열", "어지럼증", "불면증")


@pytest.fixture(scope="module")
def generated():
    return pages()


def test_every_page_with_commands_is_run():
    assert {name for name, page in WRITTEN.items() if blocks(page)} == {
        *("tutorial.md", "languages.md", *SAYS),
        "operate/stages.md",  # test_readme.py
    }


def commands_of(page):
    """Commands in all blocks, also titled ones, and commands of this project quoted in sentences."""
    in_blocks = re.findall(r"^```bash.*?\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = "\n".join(in_blocks).replace("\\\n", " ").splitlines()
    return lines + re.findall(r"(?<!`)`((?:bert-pipeline|make) [^`\n]+)`(?!`)", page)


@pytest.mark.parametrize("name", GUIDES)
def test_commands_options_and_paths_of_a_page_exist(name):
    page = GUIDES[name]
    titles = re.findall(r"^```bash (.*)$", page, re.MULTILINE)
    assert all(title.startswith(f'title="{NOT_RUN}') for title in titles), titles
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in (command for each in commands_of(page) for command in each.split(" && ")):
        words = shlex.split(line, comments=True) if line.count("'") % 2 == 0 and line.count('"') % 2 == 0 else []
        while words and "=" in words[0]:  # variables set before the command
            words.pop(0)
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        if words[:1] == ["bert-pipeline"] and words[1] not in ("COMMAND", "--version"):
            known = COMMANDS[words[1]]
            assert all(word in known for word in words[2:] if word.startswith("--")), line
    for path in re.findall(rf"[`\s]((?:{TOP})/[\w./-]+)", page):
        assert (ROOT / path.rstrip("./")).exists(), path


def test_options_in_blocks_that_are_not_run_exist():
    """For Python programs. tests/infra/test_infra.py checks the Docker and Kubernetes files of infra/."""
    for page in WRITTEN.values():
        for line in "".join(
            re.findall(rf'^```bash title="{NOT_RUN}.*?\n(.*?)^```', page, re.DOTALL | re.M)
        ).splitlines():
            program, *words = shlex.split(line)
            if program in ("mlflow", "dagster", "dg"):
                options = [word for word in words if word.startswith("--")]
                command = [program, *words[: words.index(options[0])]]
                known = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
                assert all(re.search(rf"{option}\b", known) for option in options), line


def test_every_recipe_and_study_in_the_pages_is_valid():
    tables = re.findall(r"^```toml\n(.*?)^```", "\n".join(WRITTEN.values()), re.DOTALL | re.MULTILINE)
    assert tables
    packaged = tomllib.loads((ROOT / "bert_pipeline" / "studies" / "start.toml").read_text(encoding="utf-8"))
    for table in map(tomllib.loads, tables):
        if "tasks" in table:  # a part of a study
            table = packaged | table
        section = Study if "question" in table else Recipe
        section.model_validate_json(json.dumps({"name": "page"} | table))


def test_every_key_has_a_meaning_in_the_reference(generated):
    for page, model in (("reference/recipe.md", Recipe), ("reference/task.md", Task), ("reference/study.md", Study)):
        rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", generated[page], re.MULTILINE)
        assert {name for name, meaning in rows if not meaning} == set()
        keys = {name for section in sections(model) for name in section.model_fields}
        headed = {name for name in model.model_fields if re.search(rf"^## .*\[{name}\]", generated[page], re.MULTILINE)}
        assert keys - {name for name, _ in rows} <= headed | {"name"}  # `name` is the name of the file


def test_every_command_is_in_the_reference(generated):
    page = generated["reference/cli.md"]
    assert all(f"## bert-pipeline {name} {{ #{name} }}" in page for name in COMMANDS)


def test_every_module_of_the_library_is_in_the_reference(generated):
    text = "".join(generated.values())
    modules = [path for path in (ROOT / "bert_pipeline").rglob("*.py") if not path.name.startswith("__")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules}
    assert len(names) > 100 and names == set(re.findall(r"^::: (.*)$", text, re.MULTILINE))


def test_exactly_the_variables_in_use_are_explained(generated):
    used: set[str] = set()
    for path in (path for top in ("bert_pipeline", "orchestration", "infra") for path in (ROOT / top).rglob("*")):
        if path.is_file() and path.suffix != ".md" and path.parent.name != "__pycache__":
            used |= set(re.findall(r"\bBERT_PIPELINE_[A-Z_]+", path.read_text(encoding="utf-8")))
    explained = set(re.findall(r"\bBERT_PIPELINE_[A-Z_]+", generated["reference/environment.md"]))
    assert explained == used
    assert {name for page in GUIDES.values() for name in re.findall(r"\bBERT_PIPELINE_[A-Z_]+", page)} <= used


def test_broken_links_of_a_site_are_reported(tmp_path):
    (tmp_path / "more").mkdir()
    links = [
        "more/",
        "more/index.html#here",
        "#top",
        "none.html",
        "more/index.html#there",
        "/more/",
        "https://",
        "https://a.org/b#c",
    ]
    (tmp_path / "index.html").write_text("<p id=top>" + "".join(f'<a href="{link}">x</a>' for link in links))
    (tmp_path / "more" / "index.html").write_text(
        '<h1 id="here"></h1><a href="../index.html#top">up</a><img src="none.png"><script src="https://a.org/b.js">'
    )
    assert sorted(fault.split(": ")[1] for fault in faults(tmp_path)) == [
        "/more/", "https://", "https://a.org/b.js", "more/index.html#there", "none.html", "none.png",
    ]  # fmt: skip


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "infra/README.md"])
def test_links_between_files_are_valid(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http://", "https://", "#")):
            assert ((ROOT / page).parent / link.partition("#")[0]).exists(), link
