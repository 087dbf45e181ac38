"""PubMed's files: how fast they are read, beside `pubmed_parser`, and what both make of the same record.

    python -m benchmarks.pubmed [--files 2] [--citations 30000] [--json]

    citations    every field of every citation: ours (read_citations), and pubmed_parser's parse_medline_xml
    documents    title and abstract as the corpus takes them: ours (read_pubmed), and the same peer

The files are generated (pubmed_files.py) in the schema and the sizes of NLM's. First the fields that both give are
compared, record by record; a difference that is not explained ends the run. Then they take rounds in turns, each in a
process of its own on one core, from gzip to fields; a figure is citations a second in the best round. Imports and
compiling do not count. Memory is the peak of such a process, on a file and on one four times as large.
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
from benchmarks.rows import Row, Run, row, take_turns, tell
from bert_pipeline.settings import home

ROUNDS = 3
PEER = PACKAGES["pubmed_parser"][0].replace("==", " ")


def run(work: Path, num_files: int, citations: int) -> dict[str, Any]:
    core = sorted(os.sched_getaffinity(0))[:1]
    tell(f"making {num_files} files of {citations:,} citations")
    files = [str(path) for path in write_pubmed_files(work, num_files, citations, num_updates=1)]

    def ask(task: str, peer: bool = False, **arguments: Any) -> Answer:
        return measure(
            "benchmarks.peers.pubmed_medline",
            task,
            cores=set(core),
            search_path=[environment("pubmed_parser")] if peer else [],
            environment={"NUMBA_CACHE_DIR": str(work / "numba")},
            **arguments,
        )

    tell("comparing")
    compared = ask("compare", peer=True, files=files)
    if compared["unexplained"]:
        raise SystemExit(f"{compared['unexplained']} differences: " + "\n".join(compared["examples"]))

    def ours(documents: bool) -> Run:
        return lambda _: ask("ours", files=files, documents=documents)

    runs = {"citations": ours(False), "documents": ours(True)}
    answers = take_turns(runs, {PEER: lambda _: ask("pubmed_parser", peer=True, files=files)}, ROUNDS)
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
        "memory": memory(work, citations, ask),
    }


def memory(work: Path, citations: int, ask: Callable[..., Answer]) -> dict[str, float]:
    """MiB at the peak on one file, and on one four times as large."""
    tell("memory")
    told: dict[str, float] = {}
    for name, count in (("quarter", citations // 4), ("whole", citations)):
        [file] = write_pubmed_files(work / name, 1, count)
        told[f"ours_{name}"] = ask("ours", files=[file], documents=False)["peak_mib"]
        told[f"peer_{name}"] = ask("pubmed_parser", peer=True, files=[file])["peak_mib"]
    return told


def table(result: Mapping[str, Any]) -> str:
    files, memory = result["files"], result["memory"]
    lines = [
        f"{result['machine']['cpu']}, one core, Python {result['machine']['python']}; "
        f"gzip by {'isal' if files['isal'] else 'zlib'}",
        f"{files['number']} files, {files['records']:,} records, {files['gzip_megabytes']:.0f} MB of gzip",
        "",
        f"{'records/s':12} {'ours':>9} {'peer':>9} {'ratio':>8}   {PEER}",
        *(f"{row['name']:12} {_rates(row)}" for row in result["rows"]),
        "",
        "Equal fields: " + ", ".join(f"{field} {count:,}" for field, count in result["compared"]["equal"].items()),
        *(f"{count:,}: {told}" for told, count in result["compared"]["explained"].items()),
        "",
        f"Peak memory on a file, and on one four times as large: ours {memory['ours_quarter']:.0f} and "
        f"{memory['ours_whole']:.0f} MiB, peer {memory['peer_quarter']:.0f} and {memory['peer_whole']:.0f} MiB",
    ]
    return "\n".join(lines)


def _rates(row: Row) -> str:
    return f"{row['ours']:9,.0f} {row['peer']:9,.0f} {row['ratio']:7.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2, help="of a baseline; one of updates comes after them")
    parser.add_argument("--citations", type=int, default=30_000, help="in each file")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = parser.parse_args()
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=home()) as work:
        result = run(Path(work), given.files, given.citations)
    print(json.dumps(result) if given.json else table(result))


if __name__ == "__main__":
    main()
