"""Rounds that ours and its peers take in turns, the rows that come of them, and how they are shown."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.children import Answer, MeasurementError
from benchmarks.peers.environments import PeerError

UNITS = {"M tokens/s": 1e6, "tokens/s": 1.0, "documents/s": 1.0}
UNIT = "M tokens/s"

Row = dict[str, Any]
Run = Callable[[int], Answer]
"""One measurement in a process of its own; takes the number of the round."""


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def take_turns(ours: Mapping[str, Run], peers: Mapping[str, Run], rounds: int) -> dict[str, list[Answer]]:
    """Run everyone once a round, so that a slow minute of the machine is shared; the answers by name.

    Errors of ours are raised. A peer that fails answers {"reason": ...} and is not asked again.
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
    """Best rate beside best rate; `clock` is the key of the time that counts. One that is missing is None."""
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
    return max(answer["tokens"] / answer[clock] for answer in answers) / UNITS[unit]


def _measured(answers: list[Answer], clock: str) -> dict[str, Any]:
    """What the rates come from; `process_seconds` holds imports and preparation too."""
    return {
        "tokens": [answer["tokens"] for answer in answers],
        "seconds": [round(answer[clock], 3) for answer in answers],
        "process_seconds": [round(answer["process_seconds"], 3) for answer in answers],
    }


def table(result: Mapping[str, Any]) -> str:
    machine, text, memory = result["machine"], result["text"], result["memory"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}",
        f"{text['name']}: {text['documents']:,} documents, {text['megabytes']:.1f} MB; "
        f"{text['vocab_size']:,} pieces in the vocabulary",
        "",
        f"{'M tokens/s':22} {'length':>6} {'ours':>9} {'peer':>9} {'ratio':>8}   peer (seconds of the best rounds)",
        *map(_line, result["rows"]),
        "",
        f"Peak memory of a worker: {memory['peak_mib_whole']:.0f} MiB on {memory['megabytes_whole']:.0f} MB of text, "
        f"{memory['peak_mib_quarter']:.0f} MiB on a quarter of it ({memory['growth_fraction']:+.1%}).",
        *(
            f"Disk at {length} tokens: {each['nsp_dataset']:.2f} bytes a token and pass of pairs, "
            f"{each['masked_dataset']:.2f} more for its masks."
            for length, each in result["disk"].items()
        ),
        f"First compilation (once a machine, in no figure above): {result['first_compilation_seconds']:.0f} s.",
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    figures = " ".join(f"{row[side]:9.3f}" if row[side] else f"{'-':>9}" for side in ("ours", "peer"))
    begin = f"{row['name']:22} {row.get('max_seq_length', ''):>6} {figures}"
    if row["ratio"] is None:
        return f"{begin} {'-':>8}   {row['peer_name']}: {row['reason']}"
    seconds = ", ".join(f"{min(row['measured'][side]['seconds']):.1f}" for side in ("ours", "peer"))
    return f"{begin} {row['ratio']:7.1f}x   {row['peer_name']} ({seconds} s)"
