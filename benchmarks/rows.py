"""Measure ours and its peers in alternating rounds, and show the results as rows of a table."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.children import Answer, MeasurementError
from benchmarks.peers.environments import PeerError
from bert_pipeline.core.tables import Table

UNITS = {"M tokens/s": 1e6, "tokens/s": 1.0, "documents/s": 1.0, "examples/s": 1.0}
UNIT = "M tokens/s"

HEAD = ("M tokens/s", "length", "ours", "peer", "ratio", "peer (seconds of the best rounds)")
EXTREMES_HEAD = ("comparison", "length", "peer", "worst", "text", "best", "text")

Row = dict[str, Any]
Run = Callable[[int], Answer]
"""One measurement in its own process; takes the number of the round."""


def tell(line: str) -> None:
    """Print a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def take_turns(ours: Mapping[str, Run], peers: Mapping[str, Run], rounds: int) -> dict[str, list[Answer]]:
    """Run everything once per round, so that a slow minute of the machine affects all; return the answers by name.

    Errors of ours are raised. A peer that fails has the answer {"reason": ...} and does not run again.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in (*ours, *peers)}
    for number in range(rounds):
        for name, run in (dict(ours) | dict(peers)).items():
            if any("reason" in answer for answer in answers[name]):
                continue
            try:
                answers[name].append(run(number))
            except (MeasurementError, PeerError) as error:
                if name in ours:
                    raise
                answers[name] = [{"reason": str(error)}]
                tell(f"  {name}: {error}")
            else:
                tell(f"  round {number + 1} of {rounds}: {name}, {answers[name][-1]['process_seconds']:.1f} s")
    return answers


def row(
    name: str,
    ours: list[Answer],
    peer: list[Answer],
    peer_name: str,
    clock: str = "seconds",
    unit: str = UNIT,
    **more: Any,
) -> Row:
    """Compare the best rates; `clock` is the key of the measured seconds. The rate of a peer that failed is None."""
    sides = {"ours": ours, "peer": peer}
    reasons = [answers[-1] for answers in sides.values() if "reason" in answers[-1]]
    rates = {side: None if answers[-1] in reasons else rate(answers, clock, unit) for side, answers in sides.items()}
    return {
        "name": name,
        **rates,
        "peer_name": peer_name,
        "unit": unit,
        "ratio": rates["ours"] / rates["peer"] if rates["ours"] and rates["peer"] else None,
        **more,
        **(reasons[0] if reasons else {}),
        "measured": {side: _measured(sides[side], clock) for side in sides if rates[side]},
    }


def rate(answers: list[Answer], clock: str = "seconds", unit: str = UNIT) -> float:
    """The best rate of all rounds."""
    return max(answer["tokens"] / answer[clock] for answer in answers) / UNITS[unit]


def _measured(answers: list[Answer], clock: str) -> dict[str, Any]:
    """The measurements behind the rates; `process_seconds` includes imports and preparation."""
    return {
        "tokens": [answer["tokens"] for answer in answers],
        "seconds": [round(answer[clock], 3) for answer in answers],
        "process_seconds": [round(answer["process_seconds"], 3) for answer in answers],
    }


def extremes(texts: list[dict[str, Any]]) -> list[Row]:
    """For each comparison the texts with the worst and the best ratio; the lowest ratio first."""
    ratios: dict[tuple[Any, ...], list[tuple[float, str]]] = {}
    for text in texts:
        for row in text["rows"]:
            if row["ratio"] is not None:
                comparison = row["name"], row.get("max_seq_length"), row["peer_name"]
                ratios.setdefault(comparison, []).append((row["ratio"], text["name"]))
    found: list[Row] = []
    for (name, max_seq_length, peer_name), measured in ratios.items():
        worst, best = ({"ratio": ratio, "text": text} for ratio, text in (min(measured), max(measured)))
        found.append(
            {"name": name, "max_seq_length": max_seq_length, "peer_name": peer_name, "worst": worst, "best": best}
        )
    return sorted(found, key=lambda row: row["worst"]["ratio"])


def table(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    lines = [f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}", ""]
    if len(result["texts"]) > 1:
        lines.append(Table(EXTREMES_HEAD, [_extreme_cells(row) for row in result["extremes"]]).text())
    lines += [line for text in result["texts"] for line in about(text)]
    compiling = result["first_compilation_seconds"]
    return "\n".join([*lines, f"First compilation (once per machine, not included above): {compiling:.0f} s."])


def _extreme_cells(row: Row) -> tuple[str, ...]:
    extreme = (each for key in ("worst", "best") for each in (f"{row[key]['ratio']:5.1f}x", row[key]["text"]))
    return (row["name"], str(row["max_seq_length"] or ""), row["peer_name"], *extreme)


def about(text: Mapping[str, Any]) -> list[str]:
    memory = text["memory"]
    return [
        f"{text['name']}: {text['documents']:,} documents, {text['megabytes']:.1f} MB; "
        f"{text['vocab_size']:,} pieces in the vocabulary",
        "",
        Table(HEAD, [_cells(row) for row in text["rows"]]).text(),
        f"Peak memory of a worker: {memory['peak_mib_whole']:.0f} MiB on {memory['megabytes_whole']:.0f} MB of text, "
        f"{memory['peak_mib_quarter']:.0f} MiB on a quarter of it ({memory['growth_fraction']:+.1%}).",
        *(
            f"Disk at {length} tokens, bytes per token and pass: {each['nsp_dataset']:.2f} for pairs, "
            f"{each['masked_dataset']:.2f} for masks."
            for length, each in text["disk"].items()
        ),
        "",
    ]


def _cells(row: Row) -> tuple[str, ...]:
    rates = (f"{row[side]:7.3f}" if row[side] else "-" for side in ("ours", "peer"))
    begin = (row["name"], str(row.get("max_seq_length", "")), *rates)
    if row["ratio"] is None:
        return (*begin, "-", f"{row['peer_name']}: {row['reason']}")
    seconds = ", ".join(f"{min(row['measured'][side]['seconds']):.1f}" for side in ("ours", "peer"))
    return (*begin, f"{row['ratio']:5.1f}x", f"{row['peer_name']} ({seconds} s)")
