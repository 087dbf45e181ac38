"""Data is never executed as code, and the pipeline makes no network requests."""

import ast
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bert_pipeline.evaluation.finetuning.heads import build_task_model
from bert_pipeline.evaluation.tasks.task import find_task
from bert_pipeline.training.model.model import build_model, initial_model

ROOT = Path(__file__).parents[1]
CODE = [path for part in ("bert_pipeline", "orchestration", "infra") for path in sorted((ROOT / part).rglob("*.py"))]
EXECUTES_ITS_INPUT = {"pickle.load", "pickle.loads", "torch.load", "joblib.load", "yaml.load", "yaml.unsafe_load"}
EXECUTES_ITS_INPUT |= {"eval", "exec", "os.system", "marshal.loads", "dill.load", "cloudpickle.load"}
FORBIDDEN = {"trust_remote_code": True, "weights_only": False, "allow_pickle": True, "shell": True}
WITHOUT_WEIGHTS = ("AutoTokenizer", "BertTokenizer", "PreTrainedTokenizerFast", "AutoConfig", "BertConfig")


def faults(tree: ast.AST):
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = {each.arg: getattr(each.value, "value", None) for each in call.keywords}
        if name in EXECUTES_ITS_INPUT:
            yield call.lineno, name
        yield from ((call.lineno, f"{key}={value}") for key, value in FORBIDDEN.items() if given.get(key, ...) is value)
        if (
            name.endswith(".from_pretrained")
            and not name.startswith(WITHOUT_WEIGHTS)
            and not given.get("use_safetensors")
        ):
            yield call.lineno, f"{name} without use_safetensors=True"


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "pickle.loads(content)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_unsafe_calls_are_detected(code):
    assert len(list(faults(ast.parse(code)))) == 1


@pytest.mark.parametrize("path", CODE, ids=[path.relative_to(ROOT).as_posix() for path in CODE])
def test_no_module_executes_its_input(path):
    assert list(faults(ast.parse(path.read_text(encoding="utf-8")))) == []


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def hostile(tiny, tiny_recipe, tmp_path):
    """A model without safetensors whose pickle files touch a file when loaded; returns the folder and that file."""
    tokenizer, folder, ran = tiny["tokenizer"].path, tmp_path / "hostile", tmp_path / "ran"
    shutil.copytree(tokenizer, folder)
    build_model(tiny_recipe.model, 512, 1).config.save_pretrained(folder)
    for name in ("pytorch_model.bin", "model.bin", "optimizer.pt", "training_args.bin", "rng_state.pth"):
        (folder / name).write_bytes(pickle.dumps(Payload(ran)))
    pickle.loads((folder / "model.bin").read_bytes())
    ran.unlink()  # loading the pickle does execute it
    return folder, ran


@pytest.mark.parametrize("load", ["initialize", "fine-tune"])
def test_a_model_without_safetensors_is_refused_and_not_executed(hostile, tiny, tiny_recipe, load):
    folder, ran = hostile
    with pytest.raises(OSError, match="safetensors"):
        if load == "initialize":
            initial_model(tiny_recipe.model, tiny["tokenizer"].path, 1, str(folder))
        else:
            build_task_model(folder, "pretrained", find_task("sample-chem"))
    assert not ran.exists()


CHAIN = """
import sys
from pathlib import Path
from bert_pipeline.recipe_files import load_recipe
from bert_pipeline.lineage import make_stage
from bert_pipeline.stages import kinds_of, resolve_recipe

if __name__ == "__main__":
    recipe, made = resolve_recipe(load_recipe(Path(sys.argv[1]))), {}
    for kind in kinds_of(recipe):
        made[kind] = make_stage(kind, recipe, made, Path(sys.argv[2]) / kind)
"""


@pytest.mark.slow
def test_the_pipeline_makes_no_network_connections(tmp_path):
    """Trace every connection of every process with strace, in a network namespace with loopback only."""
    tools = [shutil.which(name) or pytest.skip(f"{name} is not installed") for name in ("strace", "unshare", "ip")]
    strace, unshare, ip = tools
    (tmp_path / "chain.py").write_text(CHAIN)
    recipe = ROOT / "tests" / "orchestration" / "recipes" / "tiny.toml"
    command = f"{ip} link set lo up && exec {sys.executable} {tmp_path / 'chain.py'} {recipe} {tmp_path / 'out'}"
    trace = [strace, "-f", "--seccomp-bpf", "-e", "trace=connect,sendto", "-o", str(tmp_path / "calls")]
    subprocess.run(
        [*trace, unshare, "--net", "sh", "-c", command],
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (tmp_path / "out" / "evaluations" / "record.json").is_file()
    addresses = set(
        re.findall(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', (tmp_path / "calls").read_text())
    )
    assert {v4 or v6 for v4, v6 in addresses} <= {"127.0.0.1", "::1"}
