"""Which directory `--model` names: a path, or a name that a plug-in resolves, such as `models:/NAME@champion`."""

import os.path
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

REGISTRY = "models:/"

Kind = Literal["pretrained_checkpoint", "evaluation", "task_model"]
Resolve = Callable[[str, Kind, str], Path]
_resolvers: dict[str, Resolve] = {}


def resolve_models(prefix: str, resolve: Resolve) -> None:
    """Let `resolve(name, kind, task)` find a directory of every model whose name begins with `prefix`: its checkpoint,
    its evaluation on a task, or the task model itself. For plug-ins; see app.py.
    """
    _resolvers[prefix] = resolve


def model_directory(name: str, kind: Kind = "pretrained_checkpoint", task: str = "") -> Path:
    """Return the directory of a model. Raises ValueError if no installed plug-in knows the registry."""
    for prefix, resolve in _resolvers.items():
        if name.startswith(prefix):
            return resolve(name, kind, task)
    if name.startswith(REGISTRY):
        raise ValueError(f"{name}: no model registry is installed; remedy: pip install bert-pipeline")
    return Path(name)


def short_names(models: Sequence[str]) -> list[str]:
    """Return a name of each model for tables and folders: the last parts of its path, as many as tell it from others.

    Raises ValueError if a model is named twice.
    """
    parts = [_parts(model) for model in models]
    if twice := [model for model, each in zip(models, parts, strict=True) if parts.count(each) > 1]:
        raise ValueError(f"--model names one model twice: {', '.join(twice)}; remedy: remove one of them")
    short = []
    for mine in parts:
        others = [theirs for theirs in parts if theirs != mine]
        count = next((n for n in range(1, len(mine)) if all(theirs[-n:] != mine[-n:] for theirs in others)), len(mine))
        short.append("-".join(re.sub(r"[^\w.@-]", "-", part) for part in mine[-count:]))
    return short


def _parts(model: str) -> list[str]:
    if model.startswith(REGISTRY):
        return [model.removeprefix(REGISTRY)]
    return list(Path(os.path.abspath(model)).parts[1:])  # noqa: PTH100 - resolve() would follow links, whose names differ
