"""Every environment variable that the code reads, with its meaning and default, and the project that gives defaults.

They set where and how fast a run computes; the recipe (recipe.py) sets what it computes. No other file reads the
environment. docs/reference/environment.md is generated from the two tables below.

A project is a folder that `bert-pipeline init` wrote. Inside it, the folders of the project are the defaults.
"""

import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

Precision = Literal["bf16", "float32"]


class Variable(NamedTuple):
    meaning: str
    default: str = ""
    """For the documentation; the functions below apply it."""


VARIABLES = {
    "BERT_PIPELINE_HOME": Variable(
        "Folder for all state: artifacts, Dagster's home, MLflow's database.",
        "`workspace` in the project, else in the current directory",
    ),
    "BERT_PIPELINE_DATA": Variable(
        "Folder from which relative paths of text and evaluation data start.", "the project, else the current directory"
    ),
    "BERT_PIPELINE_RECIPES": Variable(
        "Folders with your own recipes, separated by `:`. The packaged recipes are always available.",
        "`recipes` in the project, else none",
    ),
    "BERT_PIPELINE_STUDIES": Variable(
        "Folders with your own [studies](../studies.md), separated by `:`. The packaged studies are always available.",
        "`studies` in the project, else none",
    ),
    "BERT_PIPELINE_TASKS": Variable(
        "Folders with your own evaluation tasks, separated by `:`. The BLURB tasks are always available.",
        "`tasks` in the project, else none",
    ),
    "BERT_PIPELINE_WORKERS": Variable(
        "Number of worker processes in the data stages.", "the cores available to the process"
    ),
    "BERT_PIPELINE_EXECUTOR": Variable(
        "Where data stages run: `processes` on this machine, or `dask://SCHEDULER:8786`.", "`processes`"
    ),
    "BERT_PIPELINE_ACCELERATE_CONFIG": Variable(
        "Accelerate config: devices, number of processes and machines, precision. The name of a "
        "[packaged one](../operate/scale-out.md), such as `single_gpu`, or the path of your own file.",
        "`accelerate.yaml` in the project, else `cpu`",
    ),
    "BERT_PIPELINE_PER_DEVICE_TOKENS": Variable(
        "Largest micro-batch in tokens on one device, or `auto` to measure it before training. "
        "A batch of any size is split into micro-batches of at most this many tokens. Without dropout the size changes "
        "no result beyond rounding; with dropout, other units are dropped.",
        "4096 on CPUs, `auto` on GPUs",
    ),
    "BERT_PIPELINE_FINETUNING_PRECISION": Variable(
        "Precision of fine-tuning and prediction: `bf16` or `float32`. Weights and optimizer stay float32; the record "
        "of each run names the precision.",
        "`bf16` where the processor has units for it (AMX, AVX512-BF16, GPUs since Ampere), else `float32`",
    ),
    "BERT_PIPELINE_TIMEOUT_SECONDS": Variable(
        "Seconds that a training process waits for another one before it reports that one as lost.", "25"
    ),
    "BERT_PIPELINE_REMOTE": Variable(
        "The [remote store](../operate/remote-store.md) for artifacts: `s3://BUCKET/PREFIX` or `file:///FOLDER`.",
        "none",
    ),
    "BERT_PIPELINE_FAILURE_WEBHOOK": Variable(
        "URL that receives a POST for each [failed run](../operate/runs.md#failure-notifications). "
        "Treated as a secret: never logged.",
        "none",
    ),
    "BERT_PIPELINE_DAGSTER_URL": Variable("Address of Dagster's web pages, for links.", "`http://127.0.0.1:3000`"),
    "BERT_PIPELINE_MLFLOW_URL": Variable(
        "Address of MLflow's web pages, for links.",
        "`MLFLOW_TRACKING_URI` if it is a URL, else `http://127.0.0.1:5000`",
    ),
    "MLFLOW_TRACKING_URI": Variable("MLflow server to use instead of the SQLite database in the home.", "none"),
    "MLFLOW_TRACKING_USERNAME": Variable("User at the MLflow server; recorded with each promotion.", "the login name"),
    "OMP_NUM_THREADS": Variable("Threads of each fine-tuning process.", "the cores divided by the number of processes"),
    "NUMBA_CACHE_DIR": Variable(
        "Folder for functions that numba has compiled.",
        "beside the code; if that is read-only, `XDG_CACHE_HOME/numba`; if that is, too, `numba` in BERT_PIPELINE_HOME",
    ),
    "XDG_CACHE_HOME": Variable("The user's folder for caches.", "`~/.cache`"),
    "CUDA_VISIBLE_DEVICES": Variable("GPUs that fine-tuning uses, one process each.", "all"),
}
"""Variables that users set."""

INTERNAL_VARIABLES = {
    "BERT_PIPELINE_PROJECT": Variable("Root of the project, for programs that run in another folder."),
    "BERT_PIPELINE_WORLD_SIZE": Variable("Number of training processes; set by the launcher, checked by each process."),
    "BERT_PIPELINE_LAUNCHER": Variable("Process id of the launcher; training stops when that process ends."),
    "ACCELERATE_MIXED_PRECISION": Variable("Precision of a training process, set from the accelerate config."),
    "BERT_PIPELINE_NODE": Variable(
        "Set by `infra/train-node.sh`: the training processes read the accelerate config themselves."
    ),
    "BERT_PIPELINE_REPOSITORY": Variable("Path of the clone, for `infra/slurm/train.sbatch`."),
    "RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, TORCHELASTIC_RESTART_COUNT": Variable(
        "Position of a training process in its group, set by torchrun."
    ),
    "ACCELERATE_USE_FSDP, ACCELERATE_USE_DEEPSPEED, ACCELERATE_USE_MEGATRON_LM": Variable(
        "Sharded training, set by `accelerate launch` from its config; refused."
    ),
}
"""Variables that programs set for each other."""


DETERMINISTIC_CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""https://docs.nvidia.com/cuda/cublas/#results-reproducibility"""
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""What accelerate calls the ways to shard a model in `distributed_type`."""

CPU_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "3000",
}
"""Defaults for training processes on CPUs. By default glibc returns large tensors to the kernel after each step, and
page faults then take up to two thirds of the time. OpenMP threads that spin while they wait slow down other threads on
machines with few cores; threads that sleep at once start late in each of the many small operations of a step. These
values let them spin briefly, then sleep (measured in recipes/LOG.md)."""

LIBRARY_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # the bar would overwrite a command's output
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",  # nothing is downloaded at run time
    # With MLflow's default of 7 retries, one call to an unreachable server blocks for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


ACCELERATE_CONFIGS = Path(__file__).parent / "training" / "launch" / "accelerate"
"""Folder of the packaged accelerate configs."""


PROJECT_FILE, ACCELERATE_FILE = "dg.toml", "accelerate.yaml"
"""The file that makes a folder a project: with it, Dagster's commands load the graph in this folder."""

CODE_LOCATION = "bert-pipeline"
"""What Dagster calls the graph. A dg.toml with this `code_location_name` belongs to a project."""

PYCACHE = "__pycache__"


class SettingError(ValueError):
    """An environment variable has an invalid value."""


MOVE_HOME = 'move the home to a larger disk (docs/operate/resume.md, "Move the home")'
"""Remedy for a full disk: a new BERT_PIPELINE_HOME would begin with an empty store and an empty registry."""


def set_library_defaults() -> None:
    """Set LIBRARY_DEFAULTS where the user has set nothing. Call it before these libraries are imported."""
    for name, value in LIBRARY_DEFAULTS.items():
        os.environ.setdefault(name, value)


def set_numba_cache() -> None:
    """Set NUMBA_CACHE_DIR where numba's own folders cannot be written. Call it before numba is imported.

    Numba fails to load a function (`cannot cache function: no locator available`) if neither the folder of its code
    nor the user's cache folder is writable.
    """
    if os.environ.get("NUMBA_CACHE_DIR") or _can_cache_beside(Path(__file__).parent):
        return
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "numba")
        user.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=user).close()
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        os.environ["NUMBA_CACHE_DIR"] = str(home() / "numba")


def _can_cache_beside(package: Path) -> bool:
    """Whether every folder of the package has a writable `__pycache__`, or can get one."""
    folders = [Path(folder) for folder, _, _ in os.walk(package) if Path(folder).name != PYCACHE]
    places = [folder / PYCACHE if (folder / PYCACHE).exists() else folder for folder in folders]
    return all(place.is_dir() and os.access(place, os.W_OK) for place in places)


def project() -> Path | None:
    """Root of the project: the current directory or the nearest folder above it that is a project; None outside of one.

    Raises SettingError if a dg.toml is not a TOML file.
    """
    if given := os.environ.get("BERT_PIPELINE_PROJECT"):
        return Path(given)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if _is_project(folder)), None)


def _is_project(folder: Path) -> bool:
    file = folder / PROJECT_FILE
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError:  # there is none, or a folder above belongs to somebody else
        return False
    except ValueError as error:
        raise SettingError(f"{file}: not a TOML file: {error}; remedy: correct it") from None
    section = table.get("project")
    return isinstance(section, dict) and section.get("code_location_name") == CODE_LOCATION


def home() -> Path:
    return Path(os.environ.get("BERT_PIPELINE_HOME") or (project() or Path()) / "workspace").absolute()


def store() -> Path:
    """Folder of all artifacts: `<store>/<kind>/<fingerprint>`."""
    return home() / "artifacts"


def data_folder() -> Path:
    return Path(os.environ.get("BERT_PIPELINE_DATA") or project() or ".")


def in_data_folder(path: str) -> Path:
    """`path` with `~` expanded; a relative path starts from BERT_PIPELINE_DATA."""
    return data_folder() / Path(path).expanduser()


def recipe_folders() -> list[Path]:
    return _folders("BERT_PIPELINE_RECIPES", "recipes")


def study_folders() -> list[Path]:
    return _folders("BERT_PIPELINE_STUDIES", "studies")


def task_folders() -> list[Path]:
    return _folders("BERT_PIPELINE_TASKS", "tasks")


def _folders(variable: str, name: str) -> list[Path]:
    """The folders that the variable names, else the folder `name` of the project, if it is there."""
    if value := os.environ.get(variable):
        return [Path(folder) for folder in value.split(os.pathsep) if folder]
    root = project()
    return [root / name] if root and (root / name).is_dir() else []


def paths_for_another_folder() -> dict[str, str]:
    """Variables that give a child process with another working directory the same project and the same paths."""
    values = {"BERT_PIPELINE_HOME": str(home()), "BERT_PIPELINE_DATA": str(data_folder().absolute())}
    if root := project():
        values["BERT_PIPELINE_PROJECT"] = str(root)
    for name in ("BERT_PIPELINE_RECIPES", "BERT_PIPELINE_STUDIES", "BERT_PIPELINE_TASKS"):
        if value := os.environ.get(name):
            values[name] = os.pathsep.join(str(Path(folder).absolute()) for folder in value.split(os.pathsep) if folder)
    if os.environ.get("BERT_PIPELINE_ACCELERATE_CONFIG"):
        values["BERT_PIPELINE_ACCELERATE_CONFIG"] = str(accelerate_config())
    return values


def num_workers() -> int:
    return int(os.environ.get("BERT_PIPELINE_WORKERS") or len(os.sched_getaffinity(0)))


def executor() -> str:
    return os.environ.get("BERT_PIPELINE_EXECUTOR") or "processes"


@contextmanager
def one_worker() -> Iterator[None]:
    """Within this block, data stages use a single process on this machine."""
    names = {"BERT_PIPELINE_WORKERS": "1", "BERT_PIPELINE_EXECUTOR": "processes"}
    before = {name: os.environ.get(name, "") for name in names}
    os.environ |= names
    try:
        yield
    finally:
        os.environ |= before  # an empty value counts as unset


@contextmanager
def with_accelerate_config(content: str) -> Iterator[None]:
    """Within this block, this config is the default instead of `cpu`; empty: no change."""
    name = "BERT_PIPELINE_ACCELERATE_CONFIG"
    before = os.environ.get(name, "")
    with tempfile.TemporaryDirectory(prefix="bert-pipeline-") as folder:
        if content and not before:
            path = Path(folder, ACCELERATE_FILE)
            path.write_text(content, encoding="utf-8")
            os.environ[name] = str(path)
        try:
            yield
        finally:
            os.environ[name] = before  # an empty value counts as unset


def accelerate_config() -> Path:
    """The packaged config of this name, else the file at this path. Raises FileNotFoundError if there is neither."""
    root = project()
    own = str(root / ACCELERATE_FILE) if root and (root / ACCELERATE_FILE).is_file() else ""
    value = os.environ.get("BERT_PIPELINE_ACCELERATE_CONFIG") or own or "cpu"
    packaged = {path.stem: path for path in sorted(ACCELERATE_CONFIGS.glob("*.yaml"))}
    path = packaged.get(value) or Path(value).absolute()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; remedy: set BERT_PIPELINE_ACCELERATE_CONFIG to your file, or to one of "
            f"{', '.join(packaged)}"
        )
    return path


def per_device_tokens() -> int | Literal["auto"] | None:
    """None if unset: the default depends on the device. Raises SettingError unless a positive number or `auto`."""
    value = os.environ.get("BERT_PIPELINE_PER_DEVICE_TOKENS")
    if not value:
        return None
    if value == "auto":
        return "auto"
    if not value.isdecimal() or not int(value):
        raise SettingError(f"BERT_PIPELINE_PER_DEVICE_TOKENS is {value!r}; remedy: set a number of tokens, or auto")
    return int(value)


def timeout_seconds(default: int) -> int:
    return int(os.environ.get("BERT_PIPELINE_TIMEOUT_SECONDS") or default)


def remote_url() -> str | None:
    return os.environ.get("BERT_PIPELINE_REMOTE") or None


def failure_webhook() -> str | None:
    return os.environ.get("BERT_PIPELINE_FAILURE_WEBHOOK") or None


def dagster_url() -> str:
    return (os.environ.get("BERT_PIPELINE_DAGSTER_URL") or "http://127.0.0.1:3000").rstrip("/")


def mlflow_tracking_uri(home: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home}/mlflow.db"


def mlflow_url(home: Path) -> str:
    uri = mlflow_tracking_uri(home)
    default = uri if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    return (os.environ.get("BERT_PIPELINE_MLFLOW_URL") or default).rstrip("/")


def mlflow_user() -> str | None:
    return os.environ.get("MLFLOW_TRACKING_USERNAME") or None


def finetuning_precision() -> Precision | None:
    """None if unset: the fastest of this machine. Raises SettingError unless bf16 or float32."""
    value = os.environ.get("BERT_PIPELINE_FINETUNING_PRECISION")
    if not value:
        return None
    if value not in get_args(Precision):
        raise SettingError(f"BERT_PIPELINE_FINETUNING_PRECISION is {value!r}; remedy: set bf16 or float32")
    return cast(Precision, value)


def num_threads(default: int) -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or default)


def visible_gpus(count: int) -> list[str]:
    """Names of the GPUs to use, in the form of CUDA_VISIBLE_DEVICES; `count`: GPUs of this machine."""
    return (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")


def child_environment(defaults: Mapping[str, str], values: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child process: `defaults` apply where nothing is set, `values` override everything."""
    return dict(defaults) | os.environ | dict(values or {})


def limit_threads_of_worker() -> None:
    """Limit the libraries of a worker process to one thread: as many workers as cores may run."""
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def make_cublas_deterministic() -> None:
    """Give each stream of cuBLAS a workspace of its own, unless the user has set another one."""
    os.environ |= DETERMINISTIC_CUBLAS | os.environ


def compile_as_configured(dynamo_config: Mapping[str, Any]) -> None:
    """Set the torch.compile variables that `accelerate launch` would set, for an Accelerator in this process."""
    os.environ |= {
        f"ACCELERATE_DYNAMO_{name.removeprefix('dynamo_').upper()}": str(value) for name, value in dynamo_config.items()
    }


def compute_as_configured(mixed_precision: str, dynamo_config: Mapping[str, Any]) -> None:
    """Also set the precision. For processes that torchrun alone started (infra/train-node.sh)."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = mixed_precision
    compile_as_configured(dynamo_config)


def started_by_train_node() -> bool:
    """Whether infra/train-node.sh started this process: torchrun, without `accelerate launch`."""
    return bool(os.environ.get("BERT_PIPELINE_NODE"))


class Group(NamedTuple):
    """Position of this process among the training processes, as set by torchrun or `accelerate launch`."""

    rank: int
    world_size: int | None
    """None: a single process, started without torchrun."""
    local_rank: int | None
    """Rank on this machine; None: not started by torchrun."""
    local_world_size: int
    """Number of processes on this machine."""
    restart: str
    """Number of times that torchrun has restarted the group."""
    has_master: bool
    """Whether the address of the first process is set."""
    expected_world_size: int | None
    """Number of processes that the launcher started; None: started by hand."""
    launcher: int | None
    """Process id of the launcher; None: started by hand."""
    sharding: str | None
    """The accelerate plugin that would shard the model, such as "FSDP"; None: data parallel."""


def group() -> Group:
    def number(name: str) -> int | None:
        value = os.environ.get(name)
        return None if value is None else int(value)

    plugins = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
    return Group(
        rank=number("RANK") or 0,
        world_size=number("WORLD_SIZE"),
        local_rank=number("LOCAL_RANK"),
        local_world_size=number("LOCAL_WORLD_SIZE") or 1,
        restart=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
        has_master="MASTER_ADDR" in os.environ,
        expected_world_size=number("BERT_PIPELINE_WORLD_SIZE"),
        launcher=number("BERT_PIPELINE_LAUNCHER"),
        sharding=next(
            (name.removeprefix("ACCELERATE_USE_") for name in plugins if os.environ.get(name) == "true"), None
        ),
    )
