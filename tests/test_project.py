"""Projects: found from any folder below, written by `bert-pipeline init`, and moved."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bert_pipeline import settings
from bert_pipeline.cli import main
from bert_pipeline.evaluation.tasks.task import TaskError, find_task, require_files
from bert_pipeline.experiments import find_recipe
from bert_pipeline.project import NewProject, ProjectError
from bert_pipeline.recipe import RecipeError
from orchestration.local import pages

PATHS = ("HOME", "DATA", "RECIPES", "STUDIES", "TASKS", "PROJECT")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder with a blank in its path, as the current directory, without variables."""
    for name in PATHS:
        monkeypatch.delenv(f"BERT_PIPELINE_{name}", raising=False)
    folder = tmp_path / "two words"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def create_project(folder: Path, text: Path | None = None, task: Path | None = None) -> Path:
    """A project whose recipe only names the text."""
    project = NewProject.check(folder, text, task)
    return project.write(f'[corpus]\npath = "{project.text_path}"\n' if text else "")


def folders() -> list[Path]:
    """What settings.py finds: home, data, recipes, studies, tasks."""
    found = [*settings.recipe_folders(), *settings.study_folders(), *settings.task_folders()]
    return [settings.home(), settings.data_folder().absolute(), *found]


def expected(root: Path) -> list[Path]:
    return [root / "workspace", root, root / "recipes", root / "studies", root / "tasks"]


def test_the_project_is_found_from_any_folder_below_it(folder, monkeypatch):
    assert settings.project() is None and folders() == [folder / "workspace", folder]
    root = create_project(Path("mine"))
    assert root == folder / "mine" and settings.project() is None
    for below in (root, root / "recipes", root / "studies" / "deep"):
        below.mkdir(exist_ok=True)
        monkeypatch.chdir(below)
        assert settings.project() == root and folders() == expected(root)
    inner = create_project(Path("inner"))
    monkeypatch.chdir(inner)
    assert folders() == expected(inner)


def test_dagsters_commands_load_what_the_pages_load(folder):
    """The state of schedules belongs to the name of the code location."""
    written = yaml.safe_load((create_project(folder / "mine") / "workspace.yaml").read_text())
    assert written == yaml.safe_load(Path(pages.WORKSPACE).read_text())


def test_a_project_that_was_moved_is_found_where_it_is(folder, monkeypatch):
    root = create_project(folder / "mine")
    assert not [path for path in root.rglob("*") if path.is_file() and str(folder) in path.read_text()]
    moved = shutil.move(root, folder / "other place")
    monkeypatch.chdir(moved)
    assert folders() == expected(folder / "other place")


def test_a_variable_wins(folder, monkeypatch):
    root = create_project(folder / "mine")
    monkeypatch.chdir(root)
    for name in PATHS[:-1]:
        monkeypatch.setenv(f"BERT_PIPELINE_{name}", str(folder / name))
    assert folders() == [folder / name for name in PATHS[:-1]]
    monkeypatch.setenv("BERT_PIPELINE_RECIPES", "")
    assert settings.recipe_folders() == [root / "recipes"], "empty counts as unset"


def test_a_folder_that_is_missing_is_not_used(folder, monkeypatch):
    """Version control keeps no empty folders."""
    root = create_project(folder / "mine")
    (root / "tasks").rmdir()
    monkeypatch.chdir(root)
    assert settings.task_folders() == []


def test_another_dagster_project_is_not_ours(folder):
    (folder / "dg.toml").write_text('directory_type = "project"\n[project]\nroot_module = "other"\n')
    assert settings.project() is None
    (folder / "dg.toml").write_text("project")
    with pytest.raises(settings.SettingError, match=r"dg\.toml: not a TOML file: .*remedy"):
        settings.project()


@pytest.mark.parametrize("relative", [None, "../mine"])
def test_a_child_in_another_folder_gets_the_same_paths(folder, monkeypatch, tmp_path, relative):
    """Also where a variable has a relative path. A colon in the path of the project separates nothing."""
    root = create_project(folder / ("a:b" if relative is None else "project"))
    (folder / "mine").mkdir()
    monkeypatch.chdir(root)
    if relative:
        monkeypatch.setenv("BERT_PIPELINE_TASKS", os.pathsep.join((relative, "tasks")))
    here = [path.resolve() for path in folders()]
    code = "import test_project, sys; print(*test_project.folders(), sep='\\n')"
    environment = os.environ | settings.paths_for_another_folder() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [Path(line).resolve() for line in done.stdout.splitlines()] == here


TEXT = "\n\n".join(
    f"Aspirin relieved pain in group {n}. It was well tolerated by {n % 9} patients." for n in range(300)
)
TOY = "1\t@DRUG$ cures @DISEASE$ .\thelps\n2\t@DRUG$ worsens @DISEASE$ .\tharms\n"
TASK = """\
title = "Does the drug help?"
kind = "relation"
version = "first draft"
terms = "mine"
folder = "anywhere"
labels = ["helps", "harms"]
"""


def test_init_writes_a_recipe_for_the_text_and_the_time(folder, monkeypatch):
    """For a GPU of a data sheet: nothing is timed here."""
    texts = folder / "my texts"
    texts.mkdir()
    (texts / "a.txt").write_text(TEXT)
    options = ["--minutes", "20", "--hardware", "A100-80GB", "--language", "en"]
    assert main(["init", "notes", "--text", "my texts", *options]) == 0
    root = folder / "notes"
    assert {path.name for path in root.iterdir()} == {
        *("recipes", "tasks", "studies", "workspace", "README.md", ".gitignore", ".env", "dg.toml", "workspace.yaml"),
        "accelerate.yaml",
    }
    assert len((root / "README.md").read_text().splitlines()) <= 10
    monkeypatch.chdir(root)
    recipe = find_recipe("notes")
    assert settings.in_data_folder(recipe.corpus.path) == texts and recipe.corpus.language == "en"
    low, high = recipe.expected_mlm_loss
    assert 0 < low < high and recipe.pretrain.num_steps and not recipe.evaluation.tasks
    assert "use_cpu: false" in settings.accelerate_config().read_text()
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", "cpu")
    assert settings.accelerate_config().name == "cpu.yaml"


def task_in(folder: Path, name: str, toml: str = "") -> Path:
    (folder / name).mkdir()
    for split in ("train", "dev", "test"):
        (folder / name / f"{split}.tsv").write_text(TOY)
    if toml:
        (folder / name / f"{name}.toml").write_text(toml)
    return folder / name


def test_a_task_is_copied_into_the_project(folder, monkeypatch):
    own, packaged = task_in(folder, "mine", TASK), task_in(folder, "GAD")
    for task, name in ((own, "mine"), (packaged, "GAD")):
        root = create_project(folder / f"with {name}", task=task)
        monkeypatch.chdir(root)
        shutil.rmtree(task)
        found = find_task(name)
        files = require_files(found, settings.in_data_folder(found.folder))
        assert all(path.is_relative_to(root) and path.read_text() == TOY for path in files.values())


def test_a_task_that_is_not_valid_is_refused_before_anything_is_written(folder):
    task_in(folder, "thing")
    task_in(folder, "two", TASK)
    (folder / "two" / "three.toml").write_text(TASK)
    task_in(folder, "gad", TASK.replace("relation", "unknown"))
    task_in(folder, "lost", TASK)
    (folder / "lost" / "dev.tsv").unlink()
    for name, message in (
        ("thing", r"0 task files \(\.toml\); remedy"),
        ("two", r"2 task files \(\.toml\); remedy"),
        ("gad", "kind: Input should be"),
        ("lost", r"has no dev\.tsv; remedy"),
    ):
        with pytest.raises(TaskError, match=message):
            create_project(folder / "new", task=folder / name)
    assert not (folder / "new").exists()


def test_a_text_inside_the_project_moves_with_it(folder, monkeypatch):
    inside = folder / "mine" / "texts"
    inside.mkdir(parents=True)
    root = create_project(Path("mine"), Path("mine/texts"))
    monkeypatch.chdir(root)
    assert find_recipe("mine").corpus.path == "texts"


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("full", None, ProjectError, r"full contains thing; remedy"),
        ("full", "full/thing", None, ""),
        ("file", None, ProjectError, r"file is a file; remedy"),
        ("new", "nowhere", ProjectError, r"--text nowhere: no such file or folder; remedy"),
        ("demo", "file", RecipeError, r"a recipe is named demo already; remedy"),
        ("my notes", "file", RecipeError, r"name: 'my notes'.* is not allowed"),
        ("my notes", None, None, ""),
    ],
)
def test_what_is_there_is_never_overwritten(folder, name, text, error, message):
    (folder / "full").mkdir()
    (folder / "full" / "thing").write_text("mine")
    (folder / "file").write_text("mine")
    before = sorted(folder.rglob("*"))
    if error:
        with pytest.raises(error, match=message):
            create_project(Path(name), Path(text) if text else None)
        assert sorted(folder.rglob("*")) == before
    else:
        create_project(Path(name), Path(text) if text else None)
    assert (folder / "full" / "thing").read_text() == "mine"


def test_a_text_named_like_a_file_of_the_project_is_refused(folder):
    text = folder / "mine" / "README.md"
    text.parent.mkdir()
    text.write_text("my text")
    with pytest.raises(ProjectError, match=r"README\.md: .* remedy: rename the text"):
        create_project(text.parent, text)
    assert text.read_text() == "my text"
