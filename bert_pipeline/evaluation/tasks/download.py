"""Download BLURB's data sets from public repositories, as far as they can be downloaded without a registration.

download.toml lists the URLs, each pinned to a commit and a SHA-256; a download with another hash is discarded. The
hashes were computed from copies of those repositories; tests run without a network, so they do not check the URLs.
For each other data set, download.toml names the page of its distributor.
"""

import hashlib
import json
import logging
import math
import random
import re
import tomllib
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from bert_pipeline.core.files import file_digest, write_whole
from bert_pipeline.evaluation.tasks.task import TaskError
from bert_pipeline.recipe import Section
from bert_pipeline.web.connections import DownloadError
from bert_pipeline.web.downloads import fetch

log = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("download.toml")

Form = Literal["as it is", "tags without types", "PubMedQA's split"]


class Download(Section):
    url: str
    sha256: str = Field(pattern="[0-9a-f]{64}")
    num_bytes: int = Field(ge=1)
    form: Form = "as it is"
    becomes: dict[str, str]
    """The files built from the download, with their SHA-256."""


class Source(Section):
    """One data set of BLURB."""

    terms: str
    cite: str
    page: str
    """Web page of the distributor."""
    must_accept: bool = False
    """The terms ask for more than a citation, so the user must accept them before the download."""
    why_not: str = ""
    """Why the data set cannot be downloaded."""
    downloads: tuple[Download, ...] = ()


def load_sources(path: Path = MANIFEST) -> dict[str, Source]:
    """Return the data sets by name, which is also their folder's name."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: Source.model_validate_json(json.dumps(source)) for name, source in content.items()}


def download_blurb(
    out: Path, names: Sequence[str] = (), accept_terms: bool = False, sources: dict[str, Source] | None = None
) -> dict[str, Any]:
    """Download the named data sets (default: all) to `out`/<name>/, and return the facts of each.

    Facts: `state` (`fetched`; `found` if all files existed with the right hash; `not fetched`), `files` with their
    SHA-256, `terms`, `cite`, `page`, and for a set that is not fetched `why_not`. Raises TaskError for an unknown name,
    and DownloadError if downloads failed, after all other sets are done.
    """
    sources = load_sources() if sources is None else sources
    if unknown := [name for name in names if name not in sources]:
        raise TaskError(f"unknown data set {', '.join(unknown)}; remedy: name some of {', '.join(sources)}")
    facts: dict[str, Any] = {}
    failures = []
    for name in names or sources:
        source = sources[name]
        files = {file: sha256 for download in source.downloads for file, sha256 in download.becomes.items()}
        why_not = source.why_not
        if files and _exist(out / name, files):
            state = "found"
        elif why_not:
            state = "not fetched"
        elif source.must_accept and not accept_terms:
            state, why_not = "not fetched", f"its terms are to be accepted first ({source.terms}), by --accept-terms"
        else:
            state = "fetched"
            try:
                for download in source.downloads:
                    _make_files(download, out / name)
            except DownloadError as error:
                failures.append(f"{name}: {error}")
                state, why_not = "not fetched", str(error)
        facts[name] = {"state": state, "files": files if state != "not fetched" else {}}
        facts[name] |= {"terms": source.terms, "cite": source.cite, "page": source.page}
        if why_not:
            facts[name]["why_not"] = why_not
        log.info("%s: %s", name, f"{state}: {why_not}; see {source.page}" if why_not else state)
    if failures:
        raise DownloadError("; ".join(failures))
    return facts


def _make_files(download: Download, folder: Path) -> None:
    """Download a file and write the files built from it."""
    folder.mkdir(parents=True, exist_ok=True)
    fetched = folder / f"{urlsplit(download.url).path.rpartition('/')[2]}.fetched"
    fetch(download.url, fetched, download.sha256, num_bytes=download.num_bytes)
    contents = FORMS[download.form](fetched.read_bytes(), list(download.becomes))
    for name, content in contents.items():
        if (found := hashlib.sha256(content).hexdigest()) != download.becomes[name]:
            raise DownloadError(
                f"{folder / name}: sha256 is {found}, not {download.becomes[name]}, although the download is right; "
                "remedy: report this, with your Python version"
            )
        write_whole(folder / name, content)
    fetched.unlink()


def _as_it_is(content: bytes, names: list[str]) -> dict[str, bytes]:
    return {names[0]: content}


def _without_types(content: bytes, names: list[str]) -> dict[str, bytes]:
    """Replace tags such as B-Chemical by B."""
    return {names[0]: re.sub(rb"(\t[BI])-.*", rb"\1", content)}


def _split_pubmedqa(content: bytes, names: list[str]) -> dict[str, bytes]:
    """Split like Jin et al. (2019, arXiv 1909.06146): 500 test questions; the other 500 in ten folds, the first of them
    the development set. Like their script, draw with seed 0 and separately for each answer."""
    questions = json.loads(content)
    rng = random.Random(0)

    def folds(ids: list[str], number: int) -> list[list[str]]:
        by_answer: dict[str, list[str]] = {"yes": [], "no": [], "maybe": []}
        for id_ in ids:
            by_answer[questions[id_]["final_decision"]].append(id_)
        parts: list[list[str]] = [[] for _ in range(number)]
        for same in by_answer.values():
            rng.shuffle(same)
            size = math.ceil(len(same) / number)
            for n, part in enumerate(parts):
                part += same[n * size : (n + 1) * size]
        if len(parts[-1]) != len(parts[0]):  # the last fold is smaller: move one question from each other fold to it
            for part in parts[:-1]:
                moved = rng.choice(part)
                part.remove(moved)
                parts[-1].append(moved)
        return parts

    others, test = folds(list(questions), 2)
    dev, *rest = folds(others, 10)
    splits = {"train_set.json": list(chain.from_iterable(rest)), "dev_set.json": dev, "test_set.json": test}
    return {name: json.dumps({id_: questions[id_] for id_ in splits[name]}, indent=4).encode() for name in names}


FORMS: dict[Form, Callable[[bytes, list[str]], dict[str, bytes]]] = {
    "as it is": _as_it_is,
    "tags without types": _without_types,
    "PubMedQA's split": _split_pubmedqa,
}


def _exist(folder: Path, files: dict[str, str]) -> bool:
    return all((folder / name).is_file() and file_digest(folder / name) == sha256 for name, sha256 in files.items())
