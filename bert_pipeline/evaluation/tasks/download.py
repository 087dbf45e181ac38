"""BLURB's data from its public places, as far as it may be had there without asking.

download.toml says what lies where, pinned to a commit and a sha256; what arrives otherwise is not kept. Its hashes were
taken from copies of those repositories: that the addresses answer is not something a test without a network can show.
For the other sets the page is named where they are given out.
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
    """The files that are made of it, with their sha256."""


class Source(Section):
    """Of one of BLURB's sets."""

    terms: str
    cite: str
    page: str
    """Of those who give it out."""
    must_accept: bool = False
    """The terms are others than to cite; whoever fetches says that they are accepted."""
    why_not: str = ""
    """Why there is nothing to fetch."""
    downloads: tuple[Download, ...] = ()


def load_sources(path: Path = MANIFEST) -> dict[str, Source]:
    """The sets by name, which is also the name of their folder."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: Source.model_validate_json(json.dumps(source)) for name, source in content.items()}


def download_blurb(
    out: Path, names: Sequence[str] = (), accept_terms: bool = False, sources: dict[str, Source] | None = None
) -> dict[str, Any]:
    """Fetch the sets of these names (none: all) to `out`/<name>/, and return the facts of each.

    Facts: `state` (`fetched`, `found` where all files were there and right, `not fetched`), `files` with their sha256,
    `terms`, `cite`, `page`, and `why_not` where a set is not fetched. Raises DownloadError, after all other sets are
    done, for those that could not be fetched; TaskError for an unknown name.
    """
    sources = load_sources() if sources is None else sources
    if unknown := [name for name in names if name not in sources]:
        raise TaskError(f"no set is named {', '.join(unknown)}; remedy: name some of {', '.join(sources)}")
    facts: dict[str, Any] = {}
    failures = []
    for name in names or sources:
        source = sources[name]
        files = {file: sha256 for download in source.downloads for file, sha256 in download.becomes.items()}
        why_not = source.why_not
        if files and _are_there(out / name, files):
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
    """Fetch, and write what it becomes."""
    folder.mkdir(parents=True, exist_ok=True)
    fetched = folder / f"{urlsplit(download.url).path.rpartition('/')[2]}.fetched"
    fetch(download.url, fetched, download.sha256, num_bytes=download.num_bytes)
    made = FORMS[download.form](fetched.read_bytes(), list(download.becomes))
    for name, content in made.items():
        if (found := hashlib.sha256(content).hexdigest()) != download.becomes[name]:
            raise DownloadError(
                f"{folder / name}: sha256 is {found}, not {download.becomes[name]}, though what was fetched is right;"
                " remedy: report it, with the version of Python"
            )
        write_whole(folder / name, content)
    fetched.unlink()


def _as_it_is(content: bytes, names: list[str]) -> dict[str, bytes]:
    return {names[0]: content}


def _without_types(content: bytes, names: list[str]) -> dict[str, bytes]:
    """B-Chemical to B."""
    return {names[0]: re.sub(rb"(\t[BI])-.*", rb"\1", content)}


def _split_pubmedqa(content: bytes, names: list[str]) -> dict[str, bytes]:
    """The split of Jin et al. (2019, arXiv 1909.06146): 500 questions to test on, the other 500 in ten folds of which
    the first is the development set. Drawn with seed 0 from each answer by itself, as their script does."""
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
        if len(parts[-1]) != len(parts[0]):  # the last fold is short: each other one gives it a question
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


def _are_there(folder: Path, files: dict[str, str]) -> bool:
    return all((folder / name).is_file() and file_digest(folder / name) == sha256 for name, sha256 in files.items())
