"""The rooms of the project: every file is in one, imports go down only, and nothing imports in a circle."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from bert_pipeline.settings import CPU_ENVIRONMENT, INTERNAL_VARIABLES, LIBRARY_DEFAULTS, VARIABLES

ROOT = Path(__file__).parents[1]

FLOORS = [
    "bert_pipeline.settings",
    "bert_pipeline.core",
    "bert_pipeline.recipe",
    "bert_pipeline.recipe_files",
    "bert_pipeline.study",
    "bert_pipeline.experiments",
    "bert_pipeline.web",
    "bert_pipeline.store",
    "bert_pipeline.formats",
    "bert_pipeline.report",
    "bert_pipeline.data.sources.sample",
    "bert_pipeline.data.sources",
    "bert_pipeline.data.sources.pubmed",
    "bert_pipeline.data.tokenizer",
    "bert_pipeline.data.contamination",
    "bert_pipeline.data.corpus",
    "bert_pipeline.data",
    "bert_pipeline.training.batches",
    "bert_pipeline.training.model",
    "bert_pipeline.training",
    "bert_pipeline.training.launch",
    "bert_pipeline.evaluation.tasks",
    "bert_pipeline.evaluation.scoring",
    "bert_pipeline.evaluation.finetuning",
    "bert_pipeline.evaluation",
    "bert_pipeline.evaluation.task_models",
    "bert_pipeline.stages",
    "bert_pipeline.lineage",
    "bert_pipeline.planning",
    "bert_pipeline.fitting",
    "bert_pipeline.project",
    "bert_pipeline.studies",
    "bert_pipeline.reproduction",
    "bert_pipeline.cli",
    "orchestration.conditions",
    "orchestration.pointers",
    "orchestration.launcher",
    "orchestration.storage",
    "orchestration.checks",
    "orchestration.tracking",
    "orchestration.registry",
    "orchestration.workshop",
    "orchestration.report",
    "orchestration.local",
    "orchestration.assets",
    "orchestration.studies",
    "orchestration.lineage",
    "orchestration.automation",
    "orchestration.commands",
    "orchestration.definitions",
]
"""From the ground up. A file imports from its own room and from those above it in this list. A file in the root of a
package is a room of its own."""

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("bert_pipeline", "orchestration")
    for path in sorted((ROOT / package).rglob("*.py"))
}
"""Every file of both packages, by module name."""

DOCUMENTED_ONLY_HERE = "bert_pipeline.settings"


@cache
def imported(module: str) -> set[str]:
    """The modules of this project that a file imports, inside functions and under TYPE_CHECKING, too."""
    found = set()
    for name in names_in(FILES[module]):
        while name and name not in FILES:
            name = name.rpartition(".")[0]
        if name and name not in ("bert_pipeline", "orchestration"):
            found.add(name)
    return found


def names_in(path: Path) -> set[str]:
    """Every module, and every name from a module, that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str:
    package, _, _ = module.rpartition(".")
    is_room = FILES[module].name == "__init__.py"
    return module if is_room or package in ("bert_pipeline", "orchestration") else package


MODULES = [module for module in FILES if module not in ("bert_pipeline", "orchestration")]


def test_every_file_is_in_a_room_and_every_room_has_a_file():
    assert {room_of(module) for module in MODULES if FILES[module].stat().st_size} <= set(FLOORS)
    assert set(FLOORS) <= {room_of(module) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    here = room_of(module)
    for other in imported(module):
        there = room_of(other)
        assert there == here or FLOORS.index(there) < FLOORS.index(here), f"{module} imports {other}"


def test_no_circle_of_files():
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in finished:
            for other in imported(module) - {module}:
                visit(other, (*path, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())


def test_rooms_are_small():
    """At most 9 files in the root of a package, and about a dozen in any other room."""
    members: dict[Path, int] = {}
    for path in FILES.values():
        if path.name != "__init__.py":
            members[path.parent] = members.get(path.parent, 0) + 1
    roots = {ROOT / "bert_pipeline", ROOT / "orchestration"}
    assert all(members[root] <= 9 for root in roots)
    assert all(count <= 13 for folder, count in members.items() if folder not in roots)


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("bert_pipeline")])
def test_the_library_knows_no_orchestrator(module):
    assert not {name.split(".")[0] for name in names_in(FILES[module])} & {"orchestration", "dagster", "mlflow"}


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("bert_pipeline.data")])
def test_the_data_stages_do_without_torch(module):
    assert not {name.split(".")[0] for name in names_in(FILES[module])} & {"torch", "accelerate"}


def test_the_stages_of_data_do_not_import_one_another():
    stages = {f"bert_pipeline.data.{name}" for name in ("corpus.build", "tokenizer.build", "nsp", "masking")}
    for stage in stages:
        assert not imported(stage) & stages - {stage}


@pytest.mark.parametrize("module", [module for module in MODULES if module != DOCUMENTED_ONLY_HERE])
def test_only_settings_reads_the_environment(module):
    """So that each variable is documented in one table. service.py is a copy inside a model, without the library."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not (names | {name.rpartition(".")[2] for name in names_in(FILES[module])}) & {"environ", "getenv"}


def test_the_documented_variables_are_the_ones_in_use():
    """settings.py may name other variables only to set them for libraries."""
    documented = {name for names in (*VARIABLES, *INTERNAL_VARIABLES) for name in names.split(", ")}
    only_set = {*LIBRARY_DEFAULTS, *CPU_ENVIRONMENT, "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"}
    tree = ast.parse(FILES[DOCUMENTED_ONLY_HERE].read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    strings = {str(node.value) for each in functions for node in ast.walk(each) if isinstance(node, ast.Constant)}
    read = {text for text in strings if re.fullmatch(r"[A-Z][A-Z0-9_]*[A-Z0-9]", text)} - only_set
    scripts = [path for path in (ROOT / "infra").rglob("*") if path.suffix in {".sh", ".sbatch", ".yaml"}]
    texts = [path.read_text(encoding="utf-8") for path in [*FILES.values(), *scripts]]
    ours = {name for text in texts for name in re.findall(r"\bBERT_PIPELINE_[A-Z_]*[A-Z]\b", text)}
    assert read | ours == documented


def test_the_library_loads_without_dagster_and_mlflow(run_python):
    code = "import sys, bert_pipeline.cli; sys.exit(bool({'dagster', 'mlflow', 'torch'} & set(sys.modules)))"
    assert run_python("-c", code).returncode == 0


def tracked() -> list[Path]:
    """The files under version control; a copy without git has none to check."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_path_of_a_machine_stands_in_the_repository():
    pattern = re.compile(r"(^|[^\w.:/])/(work|farm|root|home)/\w")
    texts = [path for path in tracked() if path.suffix in {".py", ".md", ".toml", ".yaml", ".sh"}]
    assert not [path for path in texts if pattern.search(path.read_text(encoding="utf-8"))]


def test_no_generated_file_is_in_the_repository():
    generated = re.compile(r"\.(db|sqlite3?|pyc|log|arrow|parquet|safetensors)$|(^|/)(mlruns|__pycache__|workspace)/")
    assert not [path for path in tracked() if generated.search(path.relative_to(ROOT).as_posix())]
