"""The formats that can be read: which suffix names which, and whether a file's content is what its name says."""

import bz2
import gzip
import lzma
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePath

import pyarrow as pa

from bert_pipeline.data.sources.readers import READERS
from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.data.sources.wanted import Stream

ZIP = ".zip"
DECOMPRESSORS: dict[str, Callable[[Stream], Stream]] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".xz": lambda raw: lzma.LZMAFile(raw),  # noqa: SIM115
    ".bz2": lambda raw: bz2.BZ2File(raw),
    ".zst": lambda raw: pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"),
}
SIGNATURES = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".xz": re.compile(rb"\xfd7zXZ\0|\x5d\0\0"),  # the latter: .lzma, which is read, too
    ".bz2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    ZIP: re.compile(rb"PK(?:\x03\x04|\x05\x06|\x07\x08)"),
    ".parquet": re.compile(rb"PAR1"),
}
"""How the content of a file with this suffix begins."""
SIGNATURE_BYTES = 16
FOREIGN = {
    "gzip data": SIGNATURES[".gz"],
    "xz data": SIGNATURES[".xz"],
    "bzip2 data": SIGNATURES[".bz2"],
    "Zstandard data": SIGNATURES[".zst"],
    "a .zip archive or an Office document such as .xlsx": SIGNATURES[ZIP],
    "a PDF document": re.compile(rb"%PDF-"),
    "an old Office document such as .xls": re.compile(rb"\xd0\xcf\x11\xe0\xa1\xb1"),
}
"""Contents that no text begins with. (A text may begin with PAR1, a receptor.)"""


@lru_cache(maxsize=1024)  # asked for every document
def suffixes(name: str) -> tuple[str, str]:
    """Return format and compression in lower case: (".jsonl", ".gz") for texts.JSONL.gz."""
    name = name.lower()
    compression = next((suffix for suffix in DECOMPRESSORS if suffix and name.endswith(suffix)), "")
    return PurePath(name.removesuffix(compression)).suffix, compression


def is_readable(name: str) -> bool:
    form, compression = suffixes(name)
    return form in READERS or (form == ZIP and not compression)


def known_suffixes() -> str:
    compressions = ", ".join(filter(None, DECOMPRESSORS))
    return (
        f"use {', '.join(READERS)}, optionally followed by {compressions}, or a {ZIP} of such files, and convert other "
        "formats to one of these"
    )


def check_content(name: str, beginning: bytes, shown: str) -> None:
    """Raise SourceError if the first bytes of a file contradict the suffix of its name. `shown` names it in errors."""
    form, compression = suffixes(name)
    wanted = compression or form
    if not beginning or (wanted in SIGNATURES and SIGNATURES[wanted].match(beginning)):
        return
    found = next((kind for kind, signature in FOREIGN.items() if signature.match(beginning)), "")
    if wanted in SIGNATURES:
        is_text = beginning.isascii() and not re.search(rb"[\0-\x08]", beginning)
        found = found or ("plain text" if is_text else "something else")
        raise SourceError(
            f"{shown}: its name ends in {wanted}, but its content is {found}: it begins with {beginning!r}; "
            "remedy: give it the suffix of its content, or download it again"
        )
    if found:
        raise SourceError(
            f"{shown}: its name ends in {form}, but its content is {found}; "
            "remedy: give it the suffix of its content, or export it as text"
        )
