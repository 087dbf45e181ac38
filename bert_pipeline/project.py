"""Projects: the folder that `bert-pipeline init` writes, with recipes, tasks and studies of one's own.

settings.py finds the project from any folder below it. No file of a project contains the project's own path, so it may
be moved, copied and kept under version control; `.gitignore` leaves out the home.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bert_pipeline import settings
from bert_pipeline.evaluation.tasks.task import TaskError, find_task, load_task, require_files, task_files
from bert_pipeline.experiments import recipe_names
from bert_pipeline.recipe import Recipe, RecipeError
from bert_pipeline.recipe_files import SUFFIX, read_table, to_toml, toml_files, validated

DG = f"""\
# Makes this folder a project: the commands of bert-pipeline, dg and dagster find the graph and the home from it.
directory_type = "project"

[project]
code_location_name = "{settings.CODE_LOCATION}"
code_location_target_module = "orchestration.definitions"
# dg requires a folder of this project; the graph comes from the installed package.
root_module = "recipes"
defs_module = "recipes"

[cli.telemetry]
enabled = false
"""

WORKSPACE = f"""\
# For dagster, which does not read dg.toml: what `dagster schedule start` and its other commands load in this folder.
load_from:
  - python_module:
      module_name: orchestration.definitions
      location_name: {settings.CODE_LOCATION}
"""

DOTENV = """\
# For dg and dagster, which read this file in the folder where they are started. bert-pipeline does not read it.
DAGSTER_HOME=${PWD}/workspace/dagster
"""

IGNORED = """\
workspace/
__pycache__/
"""

README = """\
# {name}

A project of bert-pipeline: BERT models trained from scratch on the text of a domain.

- `bert-pipeline run` builds the recipe in `recipes/`, from text to a registered model; what exists is kept.
- `bert-pipeline ui` shows the graph, the runs and the models in a browser.
- `bert-pipeline plan RECIPE` estimates time and disk before a run.
- `tasks/` has evaluation tasks of your own, `studies/` comparisons of recipes, `workspace/` everything that is built.
- `bert-pipeline --help` lists all commands; `dg` and `dagster` work in this folder, too.
"""

FOLDERS = ("recipes", "studies", "tasks")


class ProjectError(ValueError):
    """A project cannot be written."""


@dataclass(frozen=True)
class NewTask:
    """An evaluation task to copy into a project."""

    name: str
    description: str
    """Its TOML file; empty for a packaged task."""
    folder: str
    """Folder of its data, relative to the project."""
    data: Mapping[str, Path]
    """The data files by their path in this folder."""


@dataclass(frozen=True)
class NewProject:
    """A project that can be written."""

    root: Path
    text: Path | None
    task: NewTask | None

    @classmethod
    def check(cls, folder: Path, text: Path | None = None, task: Path | None = None) -> "NewProject":
        """Check that a project can be written into `folder`: it is new, empty, or contains the text and nothing else.

        With `text`, it will have a recipe of its name. `task` is the folder of an evaluation task. Raises ProjectError,
        RecipeError if the name of the project cannot be the name of a recipe, and TaskError if the task is not valid.
        """
        root = folder.resolve()
        source = _existing(text, "text") if text else None
        others = [path for path in _entries(root, folder) if not (source and source.is_relative_to(path))]
        if others:
            raise ProjectError(f"{folder} contains {others[0].name}; remedy: name a new or an empty folder")
        project = cls(root, source, _read_task(_existing(task, "task")) if task else None)
        if source:
            _assert_recipe_name(root.name)
            if taken := [
                name for name in (*project._files(), *FOLDERS, settings.ACCELERATE_FILE) if (root / name).exists()
            ]:
                raise ProjectError(f"{root / taken[0]}: the project has a file of this name; remedy: rename the text")
        return project

    @property
    def text_path(self) -> str:
        """The path of the text in the recipe: relative if the text is inside the project."""
        assert self.text
        return str(self.text.relative_to(self.root) if self.text.is_relative_to(self.root) else self.text)

    def write(self, recipe: str = "", accelerate: str = "") -> Path:
        """Write the project, with its recipe and its accelerate config unless they are empty; return its root."""
        given = {f"recipes/{self.root.name}{SUFFIX}": recipe, settings.ACCELERATE_FILE: accelerate}
        files = self._files() | {name: content for name, content in given.items() if content}
        for name in FOLDERS:
            (self.root / name).mkdir(parents=True)
        if self.task:
            for name, path in self.task.data.items():
                copy = self.root / self.task.folder / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            if self.task.description:
                files[f"tasks/{self.task.name}{SUFFIX}"] = self.task.description
        for name, content in files.items():
            (self.root / name).write_text(content, encoding="utf-8")
        return self.root

    def _files(self) -> dict[str, str]:
        readme = README.format(name=self.root.name)
        files = {settings.PROJECT_FILE: DG, "workspace.yaml": WORKSPACE, ".env": DOTENV, ".gitignore": IGNORED}
        return files | {"README.md": readme}


def _entries(root: Path, folder: Path) -> list[Path]:
    if root.exists() and not root.is_dir():
        raise ProjectError(f"{folder} is a file; remedy: name a new or an empty folder")
    return sorted(root.iterdir()) if root.exists() else []


def _existing(given: Path, option: str) -> Path:
    path = given.expanduser().resolve()
    if not path.exists():
        raise ProjectError(f"--{option} {given}: no such file or folder; remedy: name the folder with your {option}")
    return path


def _read_task(folder: Path) -> NewTask:
    """The task of a folder: a task file and its data, or the data of a packaged task under its name."""
    files, known = toml_files(folder) if folder.is_dir() else [], task_files()
    if len(files) == 1:
        task = load_task(files[0])
        if task.name in known:
            raise TaskError(f"{files[0]}: a task is named {task.name} already; remedy: rename the file")
        inside = f"tasks/{task.name}"
        description = to_toml(read_table(files[0], "task", TaskError) | {"folder": inside})
    elif not files and folder.name in known:
        task = find_task(folder.name)
        inside, description = task.folder, ""
    else:
        raise TaskError(
            f"--task {folder}: {len(files)} task files (.toml); remedy: name a folder with one, beside its data "
            f"(docs/reference/task.md), or with the data of a packaged task under its name ({', '.join(known)})"
        )
    data = require_files(task, folder)
    return NewTask(task.name, description, inside, {getattr(task.splits, split).file: data[split] for split in data})


def _assert_recipe_name(name: str) -> None:
    validated({"name": name, "corpus": {"path": "any"}}, Recipe, f"recipe {name}", RecipeError)
    if name in recipe_names():
        raise RecipeError(f"a recipe is named {name} already; remedy: give the project another name")
