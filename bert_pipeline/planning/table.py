"""A plan as text: aligned tables of at most 100 columns."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from bert_pipeline.core.tables import byte_size


def show(plan: Mapping[str, Any]) -> str:
    return "\n".join(_lines(plan))


def _lines(plan: Mapping[str, Any]) -> Iterator[str]:
    text, disk, training = plan["text"], plan["disk"], plan["training"]
    share = plan["survey"]["share_read"]
    documents = text["train_documents"] + text["heldout_documents"]
    rejected = text["rejected_documents"]
    yield "Text: counted in full" if share == 1 else f"Text: extrapolated from {share:.0%} of the bytes"
    yield _row("quantity", "amount", "details")
    yield _row("documents", f"{documents:,}", f"{text['heldout_documents']:,} held out, {rejected:,} broken set aside")
    yield _row("words", f"{text['words']:,}")
    yield _row("tokens", f"{text['tokens']:,}", f"{text['tokens'] / max(text['words'], 1):.2f} per word")
    yield ""
    yield f"Pairs: {plan['dupe_factor']} passes over the text"
    yield _row("sequence length", "training pairs", "details")
    for name, pairs in plan["pairs"].items():
        mean = pairs["train_tokens"] / max(pairs["train_pairs"], 1)
        yield _row(
            name.removeprefix("len_"),
            f"{pairs['train_pairs']:,}",
            f"{pairs['train_tokens']:,} tokens, {mean:.0f} per pair; {pairs['heldout_pairs']:,} pairs held out",
        )
    yield ""
    yield f"Disk: {byte_size(disk['free'])} free in {disk['place']}"
    yield _row("artifact", "size", "details")
    for kind, size in disk["artifacts"].items():
        yield _row(kind, byte_size(size))
    yield _row("checkpoints", byte_size(disk["checkpoints"]), "during training only")
    yield _row("total", byte_size(disk["needed"]), "fits" if disk["needed"] <= disk["free"] else "does NOT fit")
    yield ""
    workers, peak = plan["workers"], byte_size(plan["memory"]["worker_peak"])
    yield f"This machine: {workers} worker{'s' * (workers > 1)}, at most {peak} each"
    yield _row("stage", "time", "memory per worker")
    for kind, seconds in plan["seconds"].items():
        memory = byte_size(plan["memory"][kind]) if kind in plan["memory"] else ""
        yield _row(kind, "unknown" if seconds is None else str(timedelta(seconds=round(seconds))), memory)
    yield ""
    yield (
        f"Training: {training['num_parameters']:,} weights (vocabulary padded to {training['padded_vocab_size']:,}), "
        + (f"{training['steps']:,} steps" if training["steps"] else "steps by the budget of minutes")
    )
    if training["leaves_bf16_units_idle"]:
        yield "In float32. On this processor bfloat16 is faster: BERT_PIPELINE_ACCELERATE_CONFIG=cpu_bf16"
    yield _row("phase", "steps", "details (FLOPs by the formula in training/model/flops.py)")
    for number, phase in enumerate(training["phases"]):
        yield _row(
            f"{number}: {phase['max_seq_length']} tokens",
            f"{phase['num_steps']:,}" if phase["num_steps"] else "unknown",
            f"{phase['pairs_per_step']:,} pairs, {phase['tokens_per_step']:,} tokens per step; "
            f"{phase['passes']:.2f} passes; {phase['flops']:.2e} FLOPs",
        )
    yield _row(
        "total",
        f"{training['steps']:,}" if training["steps"] else "unknown",
        f"{training['tokens']:,} tokens; {training['flops']:.2e} FLOPs",
    )
    yield ""
    yield (
        f"Hardware at {plan['assumed_utilization']:.0%} of its peak; weights and optimizer need "
        f"{byte_size(training['state_bytes'])}"
    )
    yield _row("device", "time on 1", "time on 8, peak and memory of one")
    for name, one in plan["hardware"].items():
        yield _row(
            name,
            _hours(one["hours"]),
            f"{_hours(one['hours_on_8'])}, {one['flops_per_second'] / 1e12:.0f} TFLOP/s, {one['memory'] / 1e9:.0f} GB",
        )


def _row(name: str, value: str, details: str = "") -> str:
    return f"  {name:<22}{value:>15}  {details}".rstrip()


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 0.1 else f"{hours * 3600:,.1f} s"
