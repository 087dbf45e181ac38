"""Convert BC5CDR (Li et al. 2016, doi 10.1093/database/baw068) from PubTator files to BLURB's token files.

BLURB uses BC5CDR as prepared by Crichton et al. (2017, doi 10.1186/s12859-017-1776-8) with standoff2conll, without the
types. This module reimplements that preparation and produces the same six files byte for byte:

- documents are sorted by PMID as text; a title is a sentence of its own;
- a sentence ends at a full stop, question or exclamation mark before white space, except inside brackets, where a
  NO_BREAK pattern matches (the heuristics of the GENIA sentence splitter's post-processing, as far as BC5CDR needs
  them), and where the mark is the only character since the last such position;
- a token is a run of letters and digits, or any other single character;
- a token belongs to the mention that contains any of its characters; of overlapping mentions of one type, the longest
  is kept (BC5CDR has no overlaps);
- a mention that spans the end of a sentence counts once in each sentence. There are two, both `St. Anthony's fire` in
  the development set: the benchmark's file therefore has 4,246 diseases, while Gu et al. 2021 (table 3) print 4,244.
"""

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pipeline.core.files import write_whole
from bert_pipeline.evaluation.tasks.task import TaskError

FOLDERS = {"Chemical": "BC5CDR-chem", "Disease": "BC5CDR-disease"}
"""Types of mentions, and the benchmark's folder for each."""

FILE_NAME = re.compile(r"CDR_(Training|Development|Test)Set\.PubTator\.txt(?:\.gz)?")
SPLITS = {"train": "Training", "dev": "Development", "test": "Test"}

TITLE = re.compile(r"(\d+)\|t\|(.*)")
ABSTRACT = re.compile(r"(\d+)\|a\|(.*)")

TOKEN = re.compile(r"[^\W_]+|\S")
SENTENCE_GAP = re.compile(r"(?<=[.!?])\s+|\n\s*")

# Patterns before and after a gap that does not end the sentence.
NO_BREAK = [
    (re.compile(rf"(?:{before})\Z"), re.compile(after))
    for before, after in (
        (r"\.", r"[a-z]{3}[a-z-]*[ .,:;]"),
        (
            "",
            r"(?:and|or|but|nor|yet|of|in|by|as|on|at|to|via|for|with|that|than|from|into|upon|after|while|during|within"
            r"|through|between|whereas|whether) ",
        ),
        (r"\b(?:e\. ?g|i\. ?[ev]|vs|cf|Dr|Mr|Ms|Mrs)\.", ""),
        (r"\bi\.", r"[ev]\."),
        (r"\b(?:[A-Z]\.|[A-Z][a-z]{3,}) [A-Z]\.", r"[A-Z][a-z]{3,}\b"),  # Anton P. Chekhov
    )
]
LONGEST_BEFORE = 50


@dataclass(frozen=True)
class Mention:
    start: int
    end: int
    """Character offsets in the document's text, end exclusive."""
    type: str
    """A key of FOLDERS."""


@dataclass(frozen=True)
class PubtatorDocument:
    pmid: str
    text: str
    """Title, line feed, abstract."""
    mentions: tuple[Mention, ...]


@dataclass(frozen=True)
class Tagged:
    """A document, tagged for one type of mention."""

    sentences: list[list[tuple[str, str]]]
    """Tokens with their tags (B, I, O)."""
    num_mentions: int
    """Mentions in the file."""
    num_overlapping: int
    """Mentions dropped because they overlap a longer one."""
    num_without_token: int
    """Mentions dropped because all their tokens belong to earlier mentions."""

    @property
    def num_entities(self) -> int:
        return sum(tag == "B" for sentence in self.sentences for _, tag in sentence)

    @property
    def num_cut(self) -> int:
        """Entities beyond the number of kept mentions: ends of sentences inside mentions."""
        return self.num_entities - (self.num_mentions - self.num_overlapping - self.num_without_token)


def convert_bc5cdr(pubtator: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write BC5CDR-chem and BC5CDR-disease under `out`: train.tsv, dev.tsv, test.tsv (token TAB tag, a blank line after
    each sentence) and documents.tsv (split, PMID, number of sentences, in the order of the token files).

    `pubtator`: the folder with CDR_{Training,Development,Test}Set.PubTator.txt (optionally gzipped), or these three
    files. Development documents that the training file repeats (as in its second release) are dropped from train.

    Returns the facts of each split by folder: documents, sentences, mentions, entities, dropped mentions by reason,
    sha256. Raises TaskError with file and line if a file is incomplete or inconsistent.
    """
    splits = _splits(_find_files(pubtator))
    facts: dict[str, Any] = {}
    for type_, name in FOLDERS.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        facts[name] = {}
        rows = []
        for split, documents in splits.items():
            tagged = {document.pmid: tag(document, type_) for document in documents}
            rows += [f"{split}\t{pmid}\t{len(each.sentences)}\n" for pmid, each in tagged.items()]
            text = "".join(_lines(tagged.values()))
            write_whole(folder / f"{split}.tsv", text)
            facts[name][split] = {
                "documents": len(tagged),
                "sentences": sum(len(each.sentences) for each in tagged.values()),
                "mentions": sum(each.num_mentions for each in tagged.values()),
                "entities": sum(each.num_entities for each in tagged.values()),
                "mentions_cut_by_a_sentence_end": sum(each.num_cut for each in tagged.values()),
                "mentions_left_out": {
                    "overlap with a longer one": sum(each.num_overlapping for each in tagged.values()),
                    "no token of their own": sum(each.num_without_token for each in tagged.values()),
                },
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
        write_whole(folder / "documents.tsv", "".join(rows))
    return facts


def read_pubtator(path: Path) -> list[PubtatorDocument]:
    """Read the documents of a PubTator file, optionally gzipped, without relations (CID). Raises TaskError."""
    documents: dict[str, PubtatorDocument] = {}
    lines: list[str] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate((*file, "\n"), 1):
                if line.strip():
                    lines.append(line.rstrip("\n"))
                elif lines:
                    document = _document(path, number - len(lines), lines)
                    if document.pmid in documents:
                        raise _fault(path, number - len(lines), "a duplicate PMID", document.pmid, "keep one")
                    documents[document.pmid] = document
                    lines = []
    except (EOFError, UnicodeDecodeError, zlib.error, gzip.BadGzipFile) as error:
        raise TaskError(f"{path} cannot be read: {error}; remedy: download the file again") from error
    if not documents:
        raise TaskError(f"{path} has no document; remedy: download the file again")
    return list(documents.values())


def tag(document: PubtatorDocument, type_: str) -> Tagged:
    """Split a document into sentences and tokens, and tag the mentions of one type."""
    mentions = [mention for mention in document.mentions if mention.type == type_]
    owner: dict[int, Mention] = {}  # the mention of each character
    num_overlapping = 0
    for mention in sorted(mentions, key=lambda mention: (mention.start - mention.end, mention.start)):
        positions = range(mention.start, mention.end)
        if any(position in owner for position in positions):
            num_overlapping += 1
        else:
            owner |= dict.fromkeys(positions, mention)
    tagged = set()
    sentences = []
    for start, end in sentence_spans(document.text):
        sentence = []
        previous = None
        for token in TOKEN.finditer(document.text, start, end):
            found = next((owner[position] for position in range(*token.span()) if position in owner), None)
            sentence.append((token[0], "O" if found is None else "I" if found is previous else "B"))
            tagged.add(found)
            previous = found
        if sentence:
            sentences.append(sentence)
    return Tagged(sentences, len(mentions), num_overlapping, len(set(owner.values()) - tagged))


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each sentence; together they cover the whole text. A line break ends a sentence."""
    enclosed = _in_brackets(text)
    starts = [0]
    piece = 0
    for gap in SENTENCE_GAP.finditer(text):
        before = max(0, gap.start() - LONGEST_BEFORE)
        if "\n" in gap[0] or not (
            gap.start() - piece == 1  # the mark is alone
            or gap.start() in enclosed
            or any(b.search(text, before, gap.start()) and a.match(text, gap.end()) for b, a in NO_BREAK)
        ):
            starts.append(gap.end())
        piece = gap.end()
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def _in_brackets(text: str) -> set[int]:
    """Return the positions between matching brackets."""
    enclosed: set[int] = set()
    for opening, closing in ("()", "[]"):
        open_at = []
        for position, character in enumerate(text):
            if character == opening:
                open_at.append(position)
            elif character == closing and open_at:
                enclosed.update(range(open_at.pop(), position))
    return enclosed


def _find_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the file of each name in SPLITS.values()."""
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    found: dict[str, Path] = {}
    for file in files:
        if name := FILE_NAME.fullmatch(file.name):
            if name[1] in found:
                raise TaskError(f"{found[name[1]]} and {file} are both the {name[1]}Set; remedy: keep one of them")
            found[name[1]] = file
    if missing := [name for name in SPLITS.values() if name not in found]:
        raise TaskError(
            f"no CDR_{missing[0]}Set.PubTator.txt (or .txt.gz) in {', '.join(map(str, paths))}; remedy: unpack "
            "CDR_Data.zip of BioCreative V (track 3), and name its folder CDR.Corpus.v010516 or the three files"
        )
    return found


def _splits(files: dict[str, Path]) -> dict[str, list[PubtatorDocument]]:
    """Return train, dev and test in the order of the benchmark's files. Raises TaskError if two share a document."""
    found = {split: read_pubtator(files[name]) for split, name in SPLITS.items()}
    development = {document.pmid: document for document in found["dev"]}
    found["train"] = [document for document in found["train"] if development.get(document.pmid) != document]
    for split, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        both = {document.pmid for document in found[split]} & {document.pmid for document in found[other]}
        if both:
            raise TaskError(
                f"PMID {min(both)} is in both {files[SPLITS[split]]} and {files[SPLITS[other]]}, and only the training "
                "file may repeat documents of the development set, unchanged; remedy: use the files of one release"
            )
    return {split: sorted(documents, key=lambda document: document.pmid) for split, documents in found.items()}


def _document(path: Path, first: int, lines: list[str]) -> PubtatorDocument:
    title = TITLE.fullmatch(lines[0])
    if not title:
        raise _fault(path, first, "no title line", lines[0], "start each document with PMID|t|title")
    abstract = ABSTRACT.fullmatch(lines[1]) if len(lines) > 1 else None
    if not abstract or abstract[1] != title[1]:
        after = lines[1] if len(lines) > 1 else ""
        raise _fault(path, first + 1, "no abstract line", after, f"put {title[1]}|a|abstract after the title")
    text = f"{title[2]}\n{abstract[2]}"
    found = [_mention(path, number, title[1], text, line) for number, line in enumerate(lines[2:], first + 2)]
    return PubtatorDocument(title[1], text, tuple(mention for mention in found if mention))


def _mention(path: Path, number: int, pmid: str, text: str, line: str) -> Mention | None:
    """Parse a mention; None for a relation."""
    fields = line.split("\t")
    if fields[0] != pmid:
        raise _fault(
            path, number, f"a line of another document than {pmid}", line, "end each document with a blank line"
        )
    if len(fields) == 4 and fields[1] == "CID":
        return None
    if len(fields) not in (6, 7) or not (fields[1].isdecimal() and fields[2].isdecimal()):
        raise _fault(path, number, "not a mention", line, "write PMID, start, end, text, type, identifier with tabs")
    start, end = int(fields[1]), int(fields[2])
    if not start < end <= len(text):
        length = f"the {len(text)} characters of title and abstract"
        raise _fault(path, number, f"a mention outside {length}", f"{start} to {end}", "correct its offsets")
    if text[start:end].replace("\n", " ") != fields[3]:
        remedy = "correct the offsets: they count characters, with one between title and abstract"
        raise _fault(path, number, f"a mention whose offsets select {text[start:end]!r}", fields[3], remedy)
    if fields[4] not in FOLDERS:
        raise _fault(path, number, "a mention of unknown type", fields[4], f"use {' or '.join(FOLDERS)}")
    return Mention(start, end, fields[4])


def _fault(path: Path, number: int, what: str, value: str, remedy: str) -> TaskError:
    return TaskError(f"{path}:{number}: {what}: {value[:80]!r}; remedy: {remedy}")


def _lines(tagged: Iterable[Tagged]) -> Iterator[str]:
    for each in tagged:
        for sentence in each.sentences:
            yield from (f"{token}\t{tag}\n" for token, tag in sentence)
            yield "\n"
