"""Read the members of a tar archive as a stream; nothing is written to disk, and no member name is used as a path.

Memory holds one member at a time. `tarfile` alone stops silently at a damaged header or at a cut between two members;
here both are errors, and so is any data after the end of the archive.
"""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Self

from bert_pipeline.data.sources.records import Fault, SourceError, excerpt

DESCRIPTIONS = frozenset(b"x g X L K".split())
"""Header types for data about the next member (extended attributes, long names), which `tarfile` loads into memory."""
MAX_DESCRIPTION_BYTES = 2**20


class _Header(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset:,}") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in DESCRIPTIONS and header.size > MAX_DESCRIPTION_BYTES):
            raise tarfile.ReadError(f"header that claims {header.size:,} bytes: {excerpt(header.name)}")
        return header


def members(stream: Any, suffixes: tuple[str, ...], max_bytes: int) -> Iterator[tuple[int, str, bytes | Fault]]:
    """Yield number (from 1, counting all members), name and content of each plain file with one of the suffixes.

    Folders and other suffixes are skipped. The content is a Fault for links, devices and other non-files, for names
    that lead out of the archive and for files larger than `max_bytes`. Raises SourceError or tarfile.TarError if the
    archive is damaged or cut short.
    """
    number = 0
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # or it keeps every header
            number += 1
            if fault := _fault(member, suffixes, max_bytes):
                yield number, member.name, fault
            elif member.isreg() and member.name.lower().endswith(suffixes):
                file = archive.extractfile(member)
                assert file is not None, "a plain file"
                yield number, member.name, file.read()
        rest: Any = archive.fileobj
        while block := rest.read(2**20):
            if block.strip(b"\0"):
                raise SourceError(
                    "data after the end of the archive; remedy: unpack it and pack the files into one archive"
                )


def _fault(member: tarfile.TarInfo, suffixes: tuple[str, ...], max_bytes: int) -> Fault | None:
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        return Fault("member is not a plain file", f"type {member.type.decode('latin-1')}")
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return Fault("member name leads out of the archive", "")
    if member.name.lower().endswith(suffixes) and member.size > max_bytes:
        return Fault(f"member is larger than {max_bytes >> 20} MiB", f"{member.size:,} bytes")
    return None
