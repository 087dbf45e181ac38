r"""The checks of gpu_day.sh that need more than a command of the library, and the bundle that they run from.

    python -m benchmarks.gpu_day pack BUNDLE.tar.gz [--text FILE]... [--data DIR] [--wheels FOLDER]
    python -m benchmarks.gpu_day TASK WORK --device cpu|cuda [--recipe NAME]

FOLDER holds the wheels of gpu_wheels.txt for the other machine; dagster, mlflow and datasets are not needed there:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
        --platform manylinux2014_x86_64 -c constraints.txt -r benchmarks/gpu_wheels.txt -d FOLDER

A task prints one JSON object. WORK holds the datasets that `prepare` builds of the generated sample.

    machine     the device and the versions of packages
    prepare     a small corpus, a tokenizer and pairs
    packed      loss and gradient of our packed rows in float32, against transformers' BertForPreTraining on padded
                rows; in bfloat16, against those in float32
    compiled    loss and gradient with torch.compile against those without
    resumed     two runs under accelerate, the second killed once and resumed: are losses and weights equal bit for bit?
    probe       what the probe measures on this device
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.children import ROOT
from benchmarks.machine import machine
from benchmarks.pretraining import cut_down, prepare, read_recipe, train_dataset
from benchmarks.training import ACCELERATE
from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.settings import child_environment

LENGTH, PAIRS, STEPS = 128, 64, 24
DATASETS = ("tokenizer", "nsp_dataset", "masked_dataset")
MOST_BYTES = 64 * 2**20
"""Bytes that a bundle may have."""
SOURCES = ("bert_pipeline", "benchmarks", "pyproject.toml", "README.md", "LICENSE")
CLOCKED = ("tokens_per_second", "data_wait_fraction", "model_flops_utilization", "peak_raised")
"""What differs between two equal runs."""

Result = dict[str, Any]


def describe(work: Path, device: str, recipe: str) -> Result:
    import torch

    found = machine(sorted(os.sched_getaffinity(0)), "accelerate", "numpy", "torch", "transformers")
    return found | {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}


def build_datasets(work: Path, device: str, recipe: str) -> Result:
    sample = {"documents_per_shard": 500, "text_fields": ["text"], "path": str(work / "text.jsonl")}
    work.mkdir(parents=True, exist_ok=True)
    from bert_pipeline.data.sources.sample.documents import sample_documents

    with (work / "text.jsonl").open("w", encoding="utf-8") as stream:
        for _, text in sample_documents(2_000, seed=1):
            stream.write(json.dumps({"text": text}) + "\n")
    chosen = cut_down(load_recipe(recipe_files()[recipe]), sample, [LENGTH])
    model = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    chosen = chosen.model_copy(update={"model": chosen.model.model_copy(update=model)})
    return prepare(str(work), json.loads(chosen.model_dump_json()), flops=1.0)


def packed(work: Path, device: str, recipe: str) -> Result:
    import torch

    from benchmarks.peers.transformers_trainer import collate, in_standard_view

    model, objective, rows, batch = _step_of(work, device)
    ours = _gradients(objective, batch, rows, device, torch.float32)
    half = _gradients(objective, batch, rows, device, torch.bfloat16)
    model.set_attn_implementation("sdpa")
    objective.zero_grad()
    padded = {name: each.to(device) for name, each in collate(in_standard_view(rows), None).items()}
    loss = model(**padded).loss
    loss.backward()
    stock = float(loss), {f"model.{name}": each.grad.clone() for name, each in model.named_parameters()}
    return {"float32_against_padded": _difference(ours, stock), "bfloat16_against_float32": _difference(half, ours)}


def compiled(work: Path, device: str, recipe: str) -> Result:
    import torch

    _, objective, rows, batch = _step_of(work, device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    eager = _gradients(objective, batch, rows, device, dtype)
    return {"against_eager": _difference(_gradients(torch.compile(objective), batch, rows, device, dtype), eager)}


def _step_of(work: Path, device: str) -> tuple[Any, ...]:
    """The model, our objective of it, some rows, and the rows packed."""
    import numpy as np
    import torch

    from bert_pipeline.formats.tokenizer import read_tokenizer
    from bert_pipeline.training.batches.packing import pack
    from bert_pipeline.training.determinism import request_determinism
    from bert_pipeline.training.model.loss import PretrainingLoss
    from bert_pipeline.training.model.model import build_model

    request_determinism(torch.device(device))
    torch.backends.cuda.matmul.allow_tf32 = False
    recipe = read_recipe(work, LENGTH, STEPS)
    rows = train_dataset(work, recipe, LENGTH).rows(0, np.arange(PAIRS))
    vocab_size = read_tokenizer(work / "tokenizer").get_vocab_size()
    model = build_model(recipe.model, vocab_size, recipe.pretrain.seed)
    model.to(device)  # type: ignore[arg-type]  # transformers hides the signature of torch's method
    batch = {name: each.to(device) for name, each in pack(rows).items()}
    return model, PretrainingLoss(model), rows, batch


def _gradients(
    objective: Any, batch: dict[str, Any], rows: Any, device: str, dtype: Any
) -> tuple[float, dict[str, Any]]:
    import torch

    objective.zero_grad()
    with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
        sums = objective(**batch)
    loss = sums.mlm_loss / rows.num_masked + sums.nsp_loss / rows.num_labelled
    loss.backward()
    named = ((name.removeprefix("_orig_mod."), each) for name, each in objective.named_parameters())
    return float(loss), {name: each.grad.clone() for name, each in named}


def _difference(found: tuple[float, dict[str, Any]], expected: tuple[float, dict[str, Any]]) -> Result:
    """Of the losses, and of the whole gradients relative to the expected one's norm."""
    distance = sum(float((found[1][name] - each).double().square().sum()) for name, each in expected[1].items())
    norm = sum(float(each.double().square().sum()) for each in expected[1].values())
    return {"loss": abs(found[0] - expected[0]), "gradient": (distance / norm) ** 0.5}


def train(work: Path, device: str, recipe: str, out: Path) -> Result:
    """Train a few steps with the regular stage; it resumes what is in `out`."""
    from bert_pipeline.lineage import make_stage
    from bert_pipeline.store import artifact

    chosen = read_recipe(work, LENGTH, STEPS)
    often = {"log_every": 1, "eval_every": STEPS, "checkpoint_every": 4, "heldout_pairs": 8}
    section = chosen.pretrain.model_copy(update=often)
    inputs = {kind: artifact.load(work / kind) for kind in DATASETS}
    make_stage("pretrained_checkpoint", chosen.model_copy(update={"pretrain": section}), inputs, out)
    return {}


def resumed(work: Path, device: str, recipe: str) -> Result:
    command = [sys.executable, "-m", "benchmarks.gpu_day", "train", str(work), "--device", device, "--out"]
    whole, parts = work / "whole", work / "parts"
    environment = _environment(device)
    subprocess.run([*command, str(whole)], cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
    process = subprocess.Popen([*command, str(parts)], cwd=ROOT, env=environment, stdout=sys.stderr)
    rows = work / "parts.partial" / "metrics.jsonl"
    while process.poll() is None and _steps(rows) < STEPS // 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)  # its training processes notice, save and end
    process.wait()
    interrupted_after = _steps(rows)
    subprocess.run([*command, str(parts)], cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
    traces = [_trace(out / "metrics.jsonl") for out in (whole, parts)]
    digests = [hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest() for out in (whole, parts)]
    first = next((one["step"] for one, other in zip(*traces, strict=True) if one != other), None)
    return {
        "interrupted_after": interrupted_after,
        "weights_equal": digests[0] == digests[1],
        "metrics_equal": traces[0] == traces[1],
        "first_different_step": first,
        "last_losses": [trace[-2]["loss"] for trace in traces],
    }


def _environment(device: str) -> dict[str, str]:
    config = ACCELERATE[device, "bf16" if device == "cuda" else "float32"]
    return child_environment({}, {"BERT_PIPELINE_ACCELERATE_CONFIG": config})


def _steps(rows: Path) -> int:
    return rows.read_bytes().count(b"learning_rate") if rows.exists() else 0


def _trace(path: Path) -> list[Result]:
    from bert_pipeline.formats.metrics import read_rows

    return [{name: value for name, value in row.items() if name not in CLOCKED} for row in read_rows(path)]


def probe(work: Path, device: str, recipe: str) -> Result:
    from bert_pipeline.training.job import Job
    from bert_pipeline.training.launch.budget import measure_pace

    chosen, folder = read_recipe(work, LENGTH, STEPS), work / "probe"
    folder.mkdir(exist_ok=True)
    tokenizer, nsp_dataset, masked_dataset = (work.absolute() / kind for kind in DATASETS)
    job = Job(
        section=chosen.pretrain,
        model=chosen.model,
        masking=chosen.masking,
        tokenizer=tokenizer,
        nsp_dataset=nsp_dataset,
        masked_dataset=masked_dataset,
        out=folder.absolute(),
        per_device_tokens="auto",
    )
    return vars(measure_pace(job, folder, _environment(device)))


TASKS: dict[str, Callable[[Path, str, str], Result]] = {
    "machine": describe,
    "prepare": build_datasets,
    "packed": packed,
    "compiled": compiled,
    "resumed": resumed,
    "probe": probe,
}


def pack_bundle(bundle: Path, texts: list[Path], data: Path | None, wheels: Path | None) -> Result:
    """Write sources, texts (to corpus/), BC5CDR-chem (to blurb/) and wheels (to wheels/) to a tar.gz file.

    Raise SystemExit if it is larger than MOST_BYTES.
    """
    parts = [(ROOT / name, name) for name in SOURCES]
    parts += [(text, f"corpus/{text.name}") for text in texts]
    if data:
        parts.append((data / "blurb" / "BC5CDR-chem", "blurb/BC5CDR-chem"))
    if wheels:
        parts += [(wheel, f"wheels/{wheel.name}") for wheel in sorted(wheels.glob("*.whl"))]
    with tarfile.open(bundle, "w:gz") as archive:
        for path, name in parts:
            archive.add(path, name, filter=lambda each: None if "__pycache__" in each.name else each)
        largest = sorted(((each.size, each.name) for each in archive.getmembers()), reverse=True)[:5]
    size = bundle.stat().st_size
    if size > MOST_BYTES:
        bundle.unlink()
        named = ", ".join(f"{name} {length / 1e6:.1f} MB" for length, name in largest)
        raise SystemExit(f"{bundle}: {size:,} bytes, and {MOST_BYTES:,} may be carried; remedy: less of {named}")
    return {"bytes": size, "files": len(parts), "largest": largest[0][1], "bert_pipeline": version("bert-pipeline")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="task", required=True)
    packing = commands.add_parser("pack", help="write the bundle")
    packing.add_argument("bundle", type=Path)
    packing.add_argument("--text", type=Path, action="append", default=[], help="a compressed text, for corpus/")
    packing.add_argument("--data", type=Path, help="folder that holds blurb/BC5CDR-chem")
    packing.add_argument("--wheels", type=Path, help="folder of wheels for packages that the machine lacks")
    for name in (*TASKS, "train"):
        command = commands.add_parser(name)
        command.add_argument("work", type=Path)
        command.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
        command.add_argument("--recipe", default="small")
        command.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.task == "pack":
        result = pack_bundle(given.bundle, given.text, given.data, given.wheels)
    elif given.task == "train":
        result = train(given.work, given.device, given.recipe, given.out)
    else:
        result = TASKS[given.task](given.work, given.device, given.recipe)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
