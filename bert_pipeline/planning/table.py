"""A plan for people: aligned text of at most 100 columns."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any


def show(plan: Mapping[str, Any]) -> str:
    return "\n".join(_lines(plan))


def _lines(plan: Mapping[str, Any]) -> Iterator[str]:
    text, disk, training = plan["text"], plan["disk"], plan["training"]
    read = plan["survey"]["share_read"]
    told = "all of it was read" if read == 1 else f"read {read:.0%} of the bytes, the rest is assumed to be like it"
    documents = text["train_documents"] + text["heldout_documents"]
    rejected = text["rejected_documents"]
    yield f"Text: {told}"
    yield _row("documents", f"{documents:,}", f"{text['heldout_documents']:,} held out, {rejected:,} broken set aside")
    yield _row("words", f"{text['words']:,}")
    yield _row("tokens", f"{text['tokens']:,}", f"{text['tokens'] / max(text['words'], 1):.2f} a word")
    yield ""
    yield f"Pairs: {plan['dupe_factor']} passes over the text"
    for name, pairs in plan["pairs"].items():
        mean = pairs["train_tokens"] / max(pairs["train_pairs"], 1)
        yield _row(
            f"of {name.removeprefix('len_')} tokens",
            f"{pairs['train_pairs']:,}",
            f"{pairs['train_tokens']:,} tokens, {mean:.0f} a pair; {pairs['heldout_pairs']:,} pairs held out",
        )
    yield ""
    yield f"Disk: {_bytes(disk['free'])} free in {disk['place']}"
    for kind, size in disk["artifacts"].items():
        yield _row(kind, _bytes(size))
    yield _row("checkpoints", _bytes(disk["checkpoints"]), "while training")
    yield _row("in all", _bytes(disk["needed"]), "fits" if disk["needed"] <= disk["free"] else "does NOT fit")
    yield ""
    workers = plan["workers"]
    yield f"This machine: {workers} worker{'s' * (workers > 1)}, at most {_bytes(plan['memory']['worker_peak'])} each"
    for kind, seconds in plan["seconds"].items():
        note = f"{_bytes(plan['memory'][kind])} a worker" if kind in plan["memory"] else ""
        yield _row(kind, "unknown" if seconds is None else str(timedelta(seconds=round(seconds))), note)
    yield ""
    yield (
        f"Training: {training['num_parameters']:,} weights (vocabulary padded to {training['padded_vocab_size']:,}), "
        + (f"{training['steps']:,} steps" if training["steps"] else "steps by the budget of minutes")
    )
    for number, phase in enumerate(training["phases"]):
        yield _row(
            f"phase {number}, {phase['max_seq_length']} tokens",
            f"{phase['num_steps']:,} steps" if phase["num_steps"] else "unknown",
            f"{phase['pairs_per_step']:,} pairs, {phase['tokens_per_step']:,} tokens a step; "
            f"{phase['passes']:.2f} passes; {phase['flops']:.2e} FLOPs",
        )
    yield _row(
        "in all",
        f"{training['flops']:.2e} FLOPs",
        f"{training['tokens']:,} tokens; formula: training/model/flops.py",
    )
    yield ""
    utilization = plan["assumed_utilization"]
    yield (
        f"Hardware, if {utilization:.0%} of its peak is reached; weights and optimizer need "
        f"{_bytes(training['state_bytes'])}"
    )
    for name, one in plan["hardware"].items():
        yield _row(
            name,
            f"{_hours(one['hours'])}",
            f"on 8: {_hours(one['hours_on_8'])}   {one['flops_per_second'] / 1e12:.0f} TFLOP/s, "
            f"{one['memory'] / 1e9:.0f} GB",
        )


def _row(name: str, value: str, note: str = "") -> str:
    return f"  {name:<22}{value:>15}  {note}".rstrip()


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 0.1 else f"{hours * 3600:,.1f} s"
