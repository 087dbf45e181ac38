"""A model's lineage as a tree of text, from the description by chain.py."""

from collections.abc import Iterator, Mapping
from typing import Any

from bert_pipeline.reproduction import SOURCES

SOURCES_SHOWN = 10


def as_text(chain: Mapping[str, Any]) -> str:
    """The tree: recipe, commit, artifacts, source files, broken links."""
    recipe, aliases = chain["recipe"], f" ({', '.join(chain['aliases'])})" if chain["aliases"] else ""
    branches = [
        (f"recipe {recipe['name']} {recipe['fingerprint'] or '(incomplete)'}", []),
        (f"git commit {chain['commit'] or '(not recorded)'}", []),
        *_task_model(chain["task_model"]),
        *((f"{each['kind']} {each['fingerprint']}", _lines(each)) for each in chain["artifacts"]),
    ]
    if sources := chain["sources"]:
        shown = [f"{each['sha256']}  {each['name']}, {each['bytes']:,} bytes{_release(each)}" for each in sources]
        more = [f"and {len(shown) - SOURCES_SHOWN:,} more, in {SOURCES}"] if len(shown) > SOURCES_SHOWN else []
        branches.append((f"{len(sources):,} source file(s)", [*shown[:SOURCES_SHOWN], *more]))
    if faults := chain["faults"]:
        branches.append((f"{len(faults)} BROKEN LINK(S)", faults))
    head = [
        f"models:/{chain['model']}/{chain['version']}{aliases}, created {chain['created']}",
        *(f"│  {name}  {chain[key]}" for name, key in (("MLflow ", "page"), ("Dagster", "dagster_run")) if chain[key]),
    ]
    return "\n".join([*head, *_draw(branches)])


def _task_model(head: Mapping[str, Any] | None) -> Iterator[tuple[str, list[str]]]:
    """The branch of a task model; none for a pretrained model."""
    if head:
        rows = {"task": head["task"], "from": head["pretrained"] or "a model that is not registered"}
        rows["scores"] = _value(head["scores"])
        yield f"task_model {head['fingerprint']}", [f"{name:<7}  {value}" for name, value in rows.items()]


def _draw(branches: list[tuple[str, list[str]]]) -> Iterator[str]:
    for number, (title, lines) in enumerate(branches):
        last = number == len(branches) - 1
        yield f"{'└' if last else '├'}─ {title}"
        yield from (f"{' ' if last else '│'}     {line}" for line in lines)


def _lines(link: Mapping[str, Any]) -> list[str]:
    made = link["made"]
    commit = f", commit {made['commit']}" if made["commit"] else ""
    rows = {
        "path": link["path"],
        "built": f"{made['at'][:19]} UTC in {made['seconds']:,.1f} s by {made['by']} on {made['host']}{commit}",
        "from": ", ".join(f"{name} {key}" for name, key in link["made_from"].items()),
        "facts": "; ".join(f"{name} {_value(value)}" for name, value in link["facts"].items()),
        "MLflow": link["mlflow_run"],
        "Dagster": link["dagster_run"] or "no run recorded: built by hand, or by an older version",
    }
    return [f"{name:<7}  {value}" for name, value in rows.items() if value]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(one)}" for name, one in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _release(source: Mapping[str, Any]) -> str:
    return f", released {source['released']}" if source.get("released") else ""
