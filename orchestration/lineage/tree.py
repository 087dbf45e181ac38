"""A model's lineage as a tree for people, from what lineage.py describes."""

from collections.abc import Iterator, Mapping
from typing import Any

from bert_pipeline.reproduction import SOURCES

SOURCES_SHOWN = 10


def show(told: Mapping[str, Any]) -> str:
    """The tree for people."""
    recipe, aliases = told["recipe"], f" ({', '.join(told['aliases'])})" if told["aliases"] else ""
    blocks = [
        (f"recipe {recipe['name']} {recipe['fingerprint'] or '(not known whole)'}", []),
        (f"git commit {told['commit'] or '(not recorded)'}", []),
        *((f"{each['kind']} {each['fingerprint']}", _lines(each)) for each in told["artifacts"]),
    ]
    if sources := told["sources"]:
        shown = [f"{each['sha256']}  {each['name']}, {each['bytes']:,} bytes{_day(each)}" for each in sources]
        more = [f"and {len(shown) - SOURCES_SHOWN:,} more, in {SOURCES}"] if len(shown) > SOURCES_SHOWN else []
        blocks.append((f"{len(sources):,} source file(s)", [*shown[:SOURCES_SHOWN], *more]))
    if faults := told["faults"]:
        blocks.append((f"{len(faults)} BROKEN LINK(S)", faults))
    head = [
        f"models:/{told['model']}/{told['version']}{aliases}, created {told['created']}",
        *(f"│  {name}  {told[key]}" for name, key in (("MLflow ", "page"), ("Dagster", "dagster_run")) if told[key]),
    ]
    return "\n".join([*head, *_branches(blocks)])


def _branches(blocks: list[tuple[str, list[str]]]) -> Iterator[str]:
    for number, (title, lines) in enumerate(blocks):
        last = number == len(blocks) - 1
        yield f"{'└' if last else '├'}─ {title}"
        yield from (f"{' ' if last else '│'}     {line}" for line in lines)


def _lines(told: Mapping[str, Any]) -> list[str]:
    made = told["made"]
    commit = f", commit {made['commit']}" if made["commit"] else ""
    rows = {
        "lies in": told["path"],
        "made": f"{made['at'][:19]} UTC in {made['seconds']:,.1f} s by {made['by']} on {made['host']}{commit}",
        "from": ", ".join(f"{name} {key}" for name, key in told["made_from"].items()),
        "facts": "; ".join(f"{name} {_value(value)}" for name, value in told["facts"].items()),
        "MLflow": told["mlflow_run"],
        "Dagster": told["dagster_run"] or "no run recorded: made by hand, or before this was noted",
    }
    return [f"{name:<7}  {value}" for name, value in rows.items() if value]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(one)}" for name, one in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _day(source: Mapping[str, Any]) -> str:
    return f", released {source['released']}" if source.get("released") else ""
