"""Speed and memory of the corpus stage at PubMed's scale, on generated citations in NLM's schema.

    python -m benchmarks.corpus [--files 67] [--citations 30000] [--workers 2] [--json]

    one-worker      a quarter of the files, one worker
    all-workers     the same files, all workers
    whole           all files, all workers; compare its memory with the quarter's

All rules of recipes/pubmedbert.toml are applied except decontamination, which needs the evaluation sets. Rates are
citations per second of the stage, from XML files to the finished artifact. The forecast for all of PubMed uses the rate
and NLM's number of citations; the generated citations have the average size of PubMed's.
"""

import argparse
import json
import os
import re
import resource
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, answer, measure
from benchmarks.machine import machine
from benchmarks.pubmed_files import write_pubmed_files
from benchmarks.rows import tell
from bert_pipeline.core.tables import Table

PUBMED_CITATIONS, PUBMED_FILES = 38_000_000, 1_274
"""The baseline of 2025 (https://pubmed.ncbi.nlm.nih.gov/download/): more than 38 million citations, 1,274 files."""
SECTION = {
    "source": "pubmed",
    "min_words": 128,
    "cleaning": ("all",),
    "language": "en",
    "drop_retracted": True,
    "near_duplicate_threshold": 0.8,
    "heldout_fraction": 0.001,
}
SAMPLE_SECONDS = 0.2


def build(mirror: str, out: str, workers: int) -> Answer:
    """Run the stage in this process; sample the memory of this process and of its workers, in MiB."""
    os.environ["BERT_PIPELINE_WORKERS"] = str(workers)
    from bert_pipeline.data.corpus.build import build_raw_corpus
    from bert_pipeline.recipe import CorpusRecipe
    from bert_pipeline.store.executors import end_idle_workers

    section = CorpusRecipe.model_validate(SECTION | {"path": mirror})
    watch = Watch()
    started = time.perf_counter()
    Path(out).mkdir(parents=True)
    facts = build_raw_corpus(section, Path(out))
    seconds = time.perf_counter() - started
    peaks = watch.stop()
    end_idle_workers()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "citations": facts["records"],
        "documents": facts["train_documents"] + facts["heldout_documents"],
        "words": facts["train_words"] + facts["heldout_words"],
        "dropped_by_reason": facts["dropped_by_reason"],
        "rejected": facts["rejected_documents"],
        "seconds": seconds,
        "busy_fraction": (used.ru_utime + used.ru_stime) / (seconds * workers),
        "bytes": sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file()),
        **peaks,
    }


class Watch:
    """Samples the peak memory of this process and of its largest child, every SAMPLE_SECONDS."""

    def __init__(self) -> None:
        self.main = self.worker = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        self._done.set()
        self._thread.join()
        return {"main_mib": self.main, "worker_mib": self.worker}

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.main = max(self.main, _resident(os.getpid()))
            children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
            numbers = [int(number) for path in children for number in path.read_text().split()]
            self.worker = max([self.worker, *map(_resident, numbers)])


def _resident(process: int) -> float:
    """Resident memory in MiB; 0 if the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def main() -> None:
    options = _options()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        here = Path(folder)
        started = time.perf_counter()
        paths = write_pubmed_files(here / "mirror", options.files, options.citations, workers=options.workers)
        source_bytes = sum(path.stat().st_size for path in paths)
        tell(f"  {options.files} files, {source_bytes / 1e9:.2f} GB, in {time.perf_counter() - started:.0f} s")
        quarter = here / "quarter"
        quarter.mkdir()
        for path in paths[: max(2, options.files // 4)]:
            os.link(path, quarter / path.name)

        def run(name: str, mirror: Path, workers: int) -> Answer:
            out = here / name
            found = measure(
                "benchmarks.corpus", "build", cores=set(cores), mirror=str(mirror), out=str(out), workers=workers
            )
            shutil.rmtree(out)
            tell(f"  {name}: {found['citations']:,} citations in {found['seconds']:.0f} s")
            return {
                "name": name,
                "workers": workers,
                "citations_per_second": found["citations"] / found["seconds"],
            } | found

        rows = [
            run("one-worker", quarter, 1),
            run("all-workers", quarter, options.workers),
            run("whole", here / "mirror", options.workers),
        ]
    whole = rows[-1]
    result = {
        "machine": machine(cores, "numpy", "pyarrow", "numba"),
        "source_bytes": source_bytes,
        "rows": rows,
        "two_for_one": rows[1]["citations_per_second"] / rows[0]["citations_per_second"],
        "pubmed": {
            "citations": PUBMED_CITATIONS,
            "worker_hours": PUBMED_CITATIONS / whole["citations_per_second"] * whole["workers"] / 3600,
            "corpus_gigabytes": whole["bytes"] / whole["citations"] * PUBMED_CITATIONS / 1e9,
        },
    }
    print(json.dumps(result) if options.json else table(result))


HEAD = ("run", "workers", "citations", "seconds", "citations/s", "busy", "main MiB", "worker MiB")


def table(result: dict[str, Any]) -> str:
    forecast = result["pubmed"]
    lines = [
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores; "
        f"{result['source_bytes'] / 1e9:.2f} GB of compressed XML",
        "",
        Table(HEAD, [_cells(row) for row in result["rows"]]).text(),
        f"All workers: {result['two_for_one']:.2f} times the rate of one worker.",
        f"All of PubMed ({forecast['citations']:,} citations): {forecast['worker_hours']:.1f} hours of one worker, "
        f"{forecast['corpus_gigabytes']:.0f} GB.",
    ]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(row["name"], str(row["workers"]), f"{row['citations']:9,}", f"{row['seconds']:7.1f}"),
        *(f"{row['citations_per_second']:11,.0f}", f"{row['busy_fraction']:4.0%}"),
        *(f"{row['main_mib']:8.0f}", f"{row['worker_mib']:10.0f}"),
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=67, help="number of files to generate")
    parser.add_argument("--citations", type=int, default=30_000, help="citations per file (NLM: 30,000)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: the cores")
    parser.add_argument("--folder", type=Path, help="write here (default: the folder of temporary files)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    import sys

    if sys.argv[1:2] == ["build"]:
        answer(build)
    else:
        main()
