"""Find the files of a corpus, and account for every other file in the folder."""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

from bert_pipeline import settings
from bert_pipeline.core.tables import byte_size
from bert_pipeline.data.sources.formats import ZIP, is_readable, known_suffixes, suffixes
from bert_pipeline.data.sources.records import PassedOver, SourceError, escaped

log = logging.getLogger(__name__)

NOTES_OF_DATASETS = re.compile(r"(state|dataset_info|dataset_infos|dataset_dict)\.json|cache-[0-9a-f]+\S*\.arrow")
"""Metadata and caches that `datasets` writes beside its data."""
HIDDEN_IN_ZIP = "__MACOSX"


@dataclass
class Listing:
    files: dict[str, Path] = field(default_factory=dict)
    """The files to read, by relative name and in the order of these names."""
    passed_over: list[PassedOver] = field(default_factory=list)


def find_files(path: str) -> dict[str, Path]:
    """Return the files that a path, a folder or a glob selects, by relative name and in the order of these names.

    A relative path is resolved in BERT_PIPELINE_DATA (default: the current directory). Raises SourceError if no file is
    found. What is not read is reported once, by kind and size.
    """
    root = settings.data_folder() / Path(path).expanduser()
    listing = list_files(path)
    if not listing.files:
        counted = f"{len(listing.passed_over)} files, none in a supported format"
        kinds = f" ({_kinds(listing.passed_over)})" if listing.passed_over else ""
        raise SourceError(f"{escaped(root)}: {counted}{kinds}; remedy: {known_suffixes()}")
    _report(escaped(root), listing)
    return listing.files


def list_files(path: str) -> Listing:
    """Sort the files that a path, a folder or a glob selects into those to read and all others.

    Others are hidden files, unknown suffixes (also inside of .zip archives), metadata of `datasets`, README.md, and
    whatever cannot be opened as a file. A linked folder is followed unless it leads to a folder that is read anyway.
    """
    base, wanted = settings.data_folder(), Path(path).expanduser()
    root = base / wanted
    if root.is_file():
        if not is_readable(root.name):
            raise SourceError(f"{escaped(root)}: unknown suffix {root.suffix or '(none)'}; remedy: {known_suffixes()}")
        listing = Listing({escaped(root.name): root})
        listing.passed_over += _inside_zips(listing.files)
        return listing
    if root.is_dir():
        return _sorted(root, _walk(root))
    if not glob.has_magic(path):
        raise SourceError(
            f"{escaped(root)}: no such file or folder; remedy: correct corpus.path ({path}) or BERT_PIPELINE_DATA"
        )
    fixed = next(number for number, part in enumerate(wanted.parts) if glob.has_magic(part))
    folder, parts = base.joinpath(*wanted.parts[:fixed]), wanted.parts[fixed:]
    if "**" in parts:
        found = (each for each in _walk(folder) if _matches(each[0].relative_to(folder).parts, parts))
    else:
        found = ((each, _fault(each)) for each in folder.glob(str(Path(*parts))) if not each.is_dir())
    return _sorted(folder, found)


Found = tuple[Path, str]
"""A file, and why it cannot be read or "" if it can."""


def _walk(folder: Path) -> Iterator[Found]:
    """Yield every file below the folder. Linked folders come last, so that a folder keeps its own name."""
    root = os.path.realpath(folder)
    seen, links = {root}, [folder]
    while links:
        link = links.pop(0)
        if link != folder:
            real = os.path.realpath(link)
            around = (root, os.path.realpath(link.parent))
            if link.name.startswith("."):
                yield link, "hidden"
                continue
            if real in seen or any(Path(each).is_relative_to(real) for each in around):
                yield link, "leads to a folder that is read already or that surrounds this one"
                continue
            seen.add(real)
        stack = [link]
        while stack:
            here = stack.pop()
            try:
                entries = sorted(path.name for path in os.scandir(here))
            except OSError as error:
                yield here, f"folder cannot be opened: {error.strerror}"
                continue
            for path in map(here.joinpath, entries):
                if not path.is_dir():
                    yield path, _fault(path)
                elif path.is_symlink() or (real := os.path.realpath(path)) in seen:
                    links.append(path)
                else:
                    seen.add(real)
                    stack.append(path)
        links.sort()


def _fault(path: Path) -> str:
    if path.is_file():
        return ""
    return "not a regular file" if path.exists() else "broken link"


def _matches(parts: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether a relative path matches a glob; `**` stands for any folders, and at the end for all files."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return len(wanted) == 1 or any(_matches(parts[skipped:], wanted[1:]) for skipped in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _sorted(folder: Path, found: Iterator[Found]) -> Listing:
    listing = Listing()
    named = [(escaped(path.relative_to(folder).as_posix()), path, fault) for path, fault in found]
    for name, path, fault in sorted(named, key=lambda each: each[0]):
        if name in listing.files:
            raise SourceError(
                f"{escaped(folder)}: two files are shown as {name}, because a name is not UTF-8; remedy: rename one"
            )
        if reason := fault or reason_to_pass_over(name):
            listing.passed_over.append(PassedOver(name, 0 if fault else path.stat().st_size, reason))
        else:
            listing.files[name] = path
    listing.passed_over += _inside_zips(listing.files)
    return listing


def reason_to_pass_over(name: str) -> str:
    """Why a file with this relative name is not read; "" if it is."""
    path = PurePosixPath(name)
    if any(part.startswith(".") and part != ".." for part in path.parts):
        return "hidden"
    if NOTES_OF_DATASETS.fullmatch(path.name):
        return "metadata of datasets"
    if path.name.lower() == "readme.md":
        return "README.md describes the folder"
    if not is_readable(name):
        return f"unknown suffix {''.join(suffixes(name)) or '(none)'}"
    return ""


def reason_to_pass_over_member(name: str) -> str:
    """Why a member of a .zip archive is not read; "" if it is."""
    name = name.replace("\\", "/")
    if HIDDEN_IN_ZIP in PurePosixPath(name).parts:
        return "hidden"
    return "archive in an archive" if suffixes(name)[0] == ZIP else reason_to_pass_over(name)


def _inside_zips(files: dict[str, Path]) -> Iterator[PassedOver]:
    for name, path in files.items():
        if suffixes(name)[0] != ZIP:
            continue
        try:
            with ZipFile(path) as archive:
                members = [each for each in archive.infolist() if not each.is_dir()]
        except (BadZipFile, OSError):  # reading it reports the cause
            continue
        for member in members:
            if reason := reason_to_pass_over_member(member.filename):
                yield PassedOver(f"{name}/{member.filename}", member.file_size, reason)


def by_reason(passed_over: list[PassedOver]) -> dict[str, dict[str, int]]:
    """{reason: {"files": n, "bytes": n}}, the largest first."""
    sizes, counts = Counter[str](), Counter[str]()
    for each in passed_over:
        sizes[each.reason] += each.bytes
        counts[each.reason] += 1
    return {reason: {"files": counts[reason], "bytes": size} for reason, size in sizes.most_common()}


def _kinds(passed_over: list[PassedOver]) -> str:
    return ", ".join(
        f"{each['files']:,} {reason} ({byte_size(each['bytes'])})" for reason, each in by_reason(passed_over).items()
    )


def report_members(passed_over: list[PassedOver]) -> None:
    """Log what was found to be unreadable while archives were read."""
    if passed_over:
        log.info("passing over %s members of archives: %s", f"{len(passed_over):,}", _kinds(passed_over))


def _report(root: str, listing: Listing) -> None:
    if not listing.passed_over:
        return
    read = sum(path.stat().st_size for path in listing.files.values())
    left = sum(each.bytes for each in listing.passed_over)
    message = f"{root}: reading {len(listing.files):,} files ({byte_size(read)}), passing over "
    message += f"{len(listing.passed_over):,} ({byte_size(left)}): {_kinds(listing.passed_over)}"
    if left > read:
        message += f"; this is more than is read; remedy, if it is text: {known_suffixes()}"
    _log_once(logging.WARNING if left > read else logging.INFO, message)


@lru_cache(maxsize=1_000)
def _log_once(level: int, message: str) -> None:
    log.log(level, "%s", message)
