"""The arrows of the house: imports go down only."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "bert_pipeline").rglob("*.py"))
ORCHESTRATION = sorted((ROOT / "orchestration").rglob("*.py"))
BASE = {
    "recipe",
    "recipe_faults",
    "initial",
    "artifact",
    "documents",
    "encoding",
    "executors",
    "flops",
    "formats",
    "shards",
    "metrics",
    "progress",
    "randomness",
    "vocabulary",
}
BASE |= {"pictures", "printable", "recipe_toml", "model_card", "score_table", "connections", "downloads"}
BELOW = {"data": set(), "training": {"data"}, "evaluation": {"training", "data"}}
BELOW |= {"planning": {"data", "training", "evaluation", "stages"}}
"""The rooms of the library, and which other rooms each may look into."""


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name(path):
    return str(path.relative_to(ROOT))


def test_there_is_something_to_test():
    assert len(LIBRARY) > 20 and len(ORCHESTRATION) > 5


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_the_library_knows_no_orchestrator(path):
    assert not {module.split(".")[0] for module in imports_of(path)} & {"orchestration", "dagster", "mlflow"}


@pytest.mark.parametrize("path", [p for p in LIBRARY if p.parent.name in BELOW or p.parent.name == "sources"], ids=name)
def test_rooms_look_down_only(path):
    room = "data" if path.parent.name == "sources" else path.parent.name
    for module in imports_of(path):
        parts = module.split(".")
        if parts[0] == "bert_pipeline" and len(parts) > 1 and parts[1] != room:
            assert parts[1] in BASE | BELOW[room], f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", [p for p in LIBRARY if p.stem in BASE and p.parent.name == "bert_pipeline"], ids=name)
def test_the_base_rests_on_itself(path):
    for module in imports_of(path):
        parts = module.split(".")
        if parts[0] == "bert_pipeline" and len(parts) > 1:
            assert parts[1] in BASE, f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", [p for p in LIBRARY if "data" in p.parts[-3:]], ids=name)
def test_no_torch_in_the_data_room(path):
    assert not {module.split(".")[0] for module in imports_of(path)} & {"torch", "accelerate"}


def test_the_stages_of_data_do_not_import_one_another():
    stages = ("corpus", "tokenizer", "nsp", "masking")
    for stage in stages:
        imported = set(imports_of(ROOT / "bert_pipeline" / "data" / f"{stage}.py"))
        assert not imported & {f"bert_pipeline.data.{other}" for other in stages}


def test_the_graph_loads_without_torch_and_mlflow(run_python):
    """The web server and the daemon import the graph again and again: it must stay light."""
    code = (
        "import sys, orchestration.definitions; sys.exit(bool({'torch', 'mlflow', 'transformers'} & set(sys.modules)))"
    )
    assert run_python("-c", code).returncode == 0


def test_the_library_loads_without_dagster_and_mlflow(run_python):
    code = "import sys, bert_pipeline.cli; sys.exit(bool({'dagster', 'mlflow', 'torch'} & set(sys.modules)))"
    assert run_python("-c", code).returncode == 0


def test_no_path_of_a_machine_stands_in_the_repository():
    pattern = re.compile(r"(^|[^\w.:/])/(work|farm|root|home)/\w")
    files = [p for p in ROOT.rglob("*") if p.suffix in {".py", ".md", ".toml", ".yaml"} and ".venv" not in p.parts]
    found = [name(p) for p in files if "workspace" not in p.parts and pattern.search(p.read_text(encoding="utf-8"))]
    assert not found
