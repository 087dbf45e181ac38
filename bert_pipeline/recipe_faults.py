"""A fault of a recipe or a task in words: where it stands, what stands there, what to do."""

import difflib
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails


def explain(fault: ErrorDetails, root: type[BaseModel]) -> str:
    """`root`: the class of the whole file, Recipe or Task."""
    where = ".".join(str(step) for step in fault["loc"]) or root.__name__.lower()
    if fault["type"] == "extra_forbidden":
        known = _keys_at(fault["loc"][:-1], root)
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {remedy}"
    if fault["type"] == "missing":
        return f"{where}: missing; remedy: set it"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" + ("" if isinstance(fault["input"], dict) else f" (got {fault['input']!r})")


def _keys_at(steps: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys that the table at this place may have; the name of the whole is its file's."""
    model: Any = root
    for step in steps:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        model = getattr(annotation, "__args__", (annotation,))[0]  # tuple[PhaseRecipe, ...] -> PhaseRecipe
    return [name for name in model.model_fields if name != "name" or model is not root]
