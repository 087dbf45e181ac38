"""Read the members of tar and zip archives; nothing is written to disk, and no member name is used as a path.

tar: a stream; memory holds one member at a time. `tarfile` alone stops silently at a damaged header or at a cut between
two members; here both are errors, and so is any data after the end of the archive.
"""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from stat import S_ISLNK, S_ISREG
from typing import Any, Self
from zipfile import BadZipFile, ZipFile, ZipInfo

from bert_pipeline.data.sources.records import Fault, PassedOver, SourceError, escaped, excerpt

DESCRIPTIONS = frozenset(b"x g X L K".split())
"""Header types for data about the next member (extended attributes, long names), which `tarfile` loads into memory."""
MAX_DESCRIPTION_BYTES = 2**20
MAX_EXPANSION, SMALL_MEMBER = 200, 2**20
"""A zip member may be so many times as large as its compressed data, unless it is smaller than this; text compresses
to a third or a tenth, a zip bomb to a thousandth."""
ENCRYPTED = 1
"""Bit of a zip member's flags."""
OUTSIDE = "member name leads out of the archive"


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


def members(
    stream: Any, suffixes: tuple[str, ...], max_bytes: int
) -> Iterator[tuple[int, str, bytes | Fault | PassedOver]]:
    """Yield number (from 1, counting all members), name and content of each member that is no folder.

    The content is PassedOver for plain files with other suffixes. It is a Fault for links, devices and other non-files,
    for names that lead out of the archive and for files larger than `max_bytes`. Raises SourceError or tarfile.TarError
    if the archive is damaged or cut short.
    """
    number = 0
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # or it keeps every header
            number += 1
            if fault := _fault(member, suffixes, max_bytes):
                yield number, member.name, fault
            elif member.isdir():
                continue
            elif not member.name.lower().endswith(suffixes):
                yield number, member.name, _passed_over(member, suffixes)
            else:
                file = archive.extractfile(member)
                assert file is not None, "a plain file"
                yield number, member.name, file.read()
        rest: Any = archive.fileobj
        while block := rest.read(2**20):
            if block.strip(b"\0"):
                raise SourceError(
                    "data after the end of the archive; remedy: unpack it and pack the files into one archive"
                )


def _passed_over(member: tarfile.TarInfo, suffixes: tuple[str, ...]) -> PassedOver:
    suffix = PurePosixPath(member.name.lower()).suffix or "(none)"
    reason = f"suffix {suffix} in a .tar, where only {', '.join(suffixes)} are read"
    return PassedOver(escaped(member.name), member.size, reason)


def _fault(member: tarfile.TarInfo, suffixes: tuple[str, ...], max_bytes: int) -> Fault | None:
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        return Fault("member is not a plain file", f"type {member.type.decode('latin-1')}")
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return Fault(OUTSIDE, "")
    if member.name.lower().endswith(suffixes) and member.size > max_bytes:
        return Fault(f"member is larger than {max_bytes >> 20} MiB", f"{member.size:,} bytes")
    return None


def zip_members(archive: ZipFile) -> Iterator[tuple[ZipInfo, Fault | None]]:
    """Yield the plain files in the order of their names, each with a Fault if it must not be opened.

    Raises BadZipFile if members share their compressed data, as in a zip bomb.
    """
    infos = sorted((each for each in archive.infolist() if not each.is_dir()), key=lambda each: each.filename)
    if sum(each.compress_size for each in infos) > _size(archive):
        raise BadZipFile("members overlap, as in a zip bomb")
    seen: set[str] = set()
    for info in infos:
        yield info, _zip_fault(info, seen)
        seen.add(info.filename)


def _size(archive: ZipFile) -> int:
    file: Any = archive.fp
    return int(file.seek(0, 2))


def _zip_fault(info: ZipInfo, seen: set[str]) -> Fault | None:
    path, mode = PurePosixPath(info.filename.replace("\\", "/")), info.external_attr >> 16
    if path.is_absolute() or ".." in path.parts or path.parts[0].endswith(":"):
        return Fault(OUTSIDE, "")
    if S_ISLNK(mode) or (mode >> 12 and not S_ISREG(mode)):
        return Fault("member is not a plain file", f"mode {mode:o}")
    if info.flag_bits & ENCRYPTED:
        return Fault("member is encrypted", "")
    if info.file_size > max(SMALL_MEMBER, MAX_EXPANSION * info.compress_size):
        reason = f"member is more than {MAX_EXPANSION} times as large as its compressed data"
        return Fault(reason, f"{info.file_size:,} bytes")
    if info.filename in seen:
        return Fault("two members have this name", "")
    return None
