"""Run the commands of README.md and docs/ in a copy of the checkout: unchanged, but with smaller recipes."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Values that shrink the recipes of the pages for tests; the commands stay unchanged.
SMALLER = {
    "sample_documents": "300",
    "vocab_size": "800",
    "hidden_size": "64",
    "num_hidden_layers": "1",
    "num_attention_heads": "4",
    "heldout_pairs": "50",
    "num_steps": "20",
    "warmup_steps": "1",
    "num_epochs": "1",
    "seeds": "[1]",
}

MAKE = "make -o .venv/installed"
"""Uses the installed packages without checking them."""


def blocks(markdown: str) -> list[str]:
    """Return the command blocks of a page, without those whose title says that they are not run."""
    return re.findall(r"^```bash\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE)


def run(script: str, folder: Path, **environment: str) -> str:
    """Return the output of the commands. Fails if a command fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ | {"PATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # processes that a failed command left
    assert process.returncode == 0, out + err
    return out


def smaller(recipe: str) -> str:
    for key, value in SMALLER.items():
        recipe = re.sub(rf"\b{key} = ([\d_]+|\[.*?\])", f"{key} = {value}", recipe)
    return recipe


def check_out(folder: Path) -> Path:
    """Copy the code with its compiled files, with a smaller `demo`, its own workspace, and text."""
    copy = folder / "copy"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".*", "workspace", "out", "site", "site-source", "*.egg-info")
    )
    demo = copy / "bert_pipeline" / "recipes" / "demo.toml"
    demo.write_text(smaller(demo.read_text(encoding="utf-8")), encoding="utf-8")
    (copy / ".venv").symlink_to(Path(sys.executable).parents[1])
    (copy / "my-text").mkdir()
    sentences = "Aspirin relieved pain in group {}. It was well tolerated by {} patients. Atenolol lowered the rate."
    documents = "\n\n".join(sentences.format(n, n % 9) for n in range(200))
    (copy / "my-text" / "all.txt").write_text(documents)
    return copy


def environment_of(copy: Path) -> dict[str, str]:
    home = copy / "workspace"
    (home / "dagster").mkdir(parents=True, exist_ok=True)
    config = (copy / "infra" / "dagster" / "dagster.yaml").read_bytes()
    (home / "dagster" / "dagster.yaml").write_bytes(config)
    return {
        "PYTHONPATH": str(copy),
        "BERT_PIPELINE_HOME": str(home),
        "BERT_PIPELINE_DATA": str(copy),
        "DAGSTER_HOME": str(home / "dagster"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "BERT_PIPELINE_WORKERS": "1",  # starting a second worker takes as long as the work itself
    }
