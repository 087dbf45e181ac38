"""Reading PubMed's files: speed of ours and of `pubmed_parser`, after a comparison of their fields.

    python -m benchmarks.pubmed [--files 2] [--citations 30000] [--json]

    citations    every field of every citation: ours (read_citations) and pubmed_parser's parse_medline_xml
    documents    title and abstract as the corpus uses them: ours (read_pubmed) and the same peer

The files are generated (pubmed_files.py) with the schema and the sizes of NLM's files. First the fields that both
readers give are compared, record by record; a difference without an explanation ends the run. Then both read the files
in alternating rounds, each in its own process on one core, from gzip to fields. Rates are citations per second in the
best round, without imports and compilation. Memory is the peak of such a process, on one file and on a file four times
as large.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, measure
from benchmarks.machine import machine
from benchmarks.peers.environments import PACKAGES, environment
from benchmarks.pubmed_files import write_pubmed_files
from benchmarks.rows import Run, row, take_turns, tell
from bert_pipeline.core.tables import Table
from bert_pipeline.settings import home

ROUNDS = 3
PEER = PACKAGES["pubmed_parser"][0].replace("==", " ")


def run(work: Path, num_files: int, citations: int) -> dict[str, Any]:
    core = sorted(os.sched_getaffinity(0))[:1]
    tell(f"generating {num_files} files of {citations:,} citations")
    files = [str(path) for path in write_pubmed_files(work, num_files, citations, num_updates=1)]

    def measured(task: str, peer: bool = False, **arguments: Any) -> Answer:
        return measure(
            "benchmarks.peers.pubmed_medline",
            task,
            cores=set(core),
            search_path=[environment("pubmed_parser")] if peer else [],
            environment={"NUMBA_CACHE_DIR": str(work / "numba")},
            **arguments,
        )

    tell("comparing")
    compared = measured("compare", peer=True, files=files)
    if compared["unexplained"]:
        raise SystemExit(f"{compared['unexplained']} differences: " + "\n".join(compared["examples"]))

    def ours(documents: bool) -> Run:
        return lambda _: measured("ours", files=files, documents=documents)

    runs = {"citations": ours(False), "documents": ours(True)}
    answers = take_turns(runs, {PEER: lambda _: measured("pubmed_parser", peer=True, files=files)}, ROUNDS)
    rows = [row(name, answers[name], answers[PEER], PEER, unit="tokens/s") | {"unit": "citations/s"} for name in runs]
    return {
        "machine": machine(core, "numba", "numpy"),
        "files": {
            "number": len(files),
            "records": answers["citations"][0]["tokens"],
            "gzip_megabytes": sum(Path(file).stat().st_size for file in files) / 1e6,
            "isal": find_spec("isal") is not None,
        },
        "compared": compared,
        "rows": rows,
        "memory": memory(work, citations, measured),
    }


def memory(work: Path, citations: int, measured: Callable[..., Answer]) -> dict[str, float]:
    """Peak memory in MiB on one file, and on a file four times as large."""
    tell("memory")
    peaks: dict[str, float] = {}
    for name, count in (("quarter", citations // 4), ("whole", citations)):
        [file] = write_pubmed_files(work / name, 1, count)
        peaks[f"ours_{name}"] = measured("ours", files=[file], documents=False)["peak_mib"]
        peaks[f"peer_{name}"] = measured("pubmed_parser", peer=True, files=[file])["peak_mib"]
    return peaks


def table(result: Mapping[str, Any]) -> str:
    files, memory = result["files"], result["memory"]
    lines = [
        f"{result['machine']['cpu']}, one core, Python {result['machine']['python']}; "
        f"gzip by {'isal' if files['isal'] else 'zlib'}",
        f"{files['number']} files, {files['records']:,} records, {files['gzip_megabytes']:.0f} MB of gzip",
        "",
        Table(
            ("records/s", "ours", PEER, "ratio"),
            [
                (row["name"], f"{row['ours']:,.0f}", f"{row['peer']:,.0f}", f"{row['ratio']:.1f}x")
                for row in result["rows"]
            ],
        ).text(),
        "Equal fields: " + ", ".join(f"{field} {count:,}" for field, count in result["compared"]["equal"].items()),
        *(f"{count:,}: {reason}" for reason, count in result["compared"]["explained"].items()),
        "",
        f"Peak memory on one file and on a file four times as large: ours {memory['ours_quarter']:.0f} and "
        f"{memory['ours_whole']:.0f} MiB, peer {memory['peer_quarter']:.0f} and {memory['peer_whole']:.0f} MiB",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2, help="number of baseline files; one update file is added")
    parser.add_argument("--citations", type=int, default=30_000, help="citations per file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    given = parser.parse_args()
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=home()) as work:
        result = run(Path(work), given.files, given.citations)
    print(json.dumps(result) if given.json else table(result))


if __name__ == "__main__":
    main()
