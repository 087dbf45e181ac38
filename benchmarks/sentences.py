"""Sentence splitters on biomedical text: boundary F1 and speed of the libraries.

    python -m benchmarks.sentences [--gold FILE ...] [--blurb FOLDER] [--json]

Libraries that are not installed are listed and skipped. Gold sentences come from

- files with one sentence per line and a blank line between texts; by default tests/data/corpus/gold_sentences.txt. It
  consists mostly of hard cases of biomedical text (abbreviations, species, units, citations, lower-case names), so F1
  is far below the F1 on real text. No rule of ours was derived from it.
- BLURB's folder, by default `blurb` in BERT_PIPELINE_DATA:
  - BC5CDR: the sentences of the token files, aligned with the original abstracts (PubTator, beside the folder), so
    boundaries are judged in real text. A splitter made these sentences (Crichton et al. 2017), and some of them are
    wrong, so 100 % is not the goal.
  - JNLPBA: GENIA's sentences, checked by people, but without their spacing; the text is restored by rules in runs of
    ten sentences.
  - HoC: sentences of whole abstracts, without their spacing. They come from a splitter that never ends a sentence
    before a lower-case letter or a digit ("p53 is ...", "5-Year survival ..."): of 60 boundaries that ours finds and
    HoC lacks, 58 were right when read one by one. Splitters with the same behaviour look better here than they are;
    recall is reliable.

A boundary is counted in non-blank characters before it, so splitters that normalize blanks are judged equally. The ends
of a text do not count. Title and abstract are separate texts.
"""

import argparse
import gzip
import importlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path

Splitter = Callable[[str], list[str]]
GoldText = tuple[str, frozenset[int]]
"""A text and its boundaries."""

GOLD = Path(__file__).parents[1] / "tests" / "data" / "corpus" / "gold_sentences.txt"

BC5CDR_FILES = {"train": "Training", "dev": "Development", "test": "Test"}


def boundaries(sentences: list[str]) -> frozenset[int]:
    ends = list(accumulate(len("".join(sentence.split())) for sentence in sentences))
    return frozenset(ends[:-1]) - {0, *ends[-1:]}


def read_token_file(path: Path) -> list[list[str]]:
    """The tokens of each sentence; lines are `token TAB label`, with a blank line between sentences."""
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    sentences = [[line.split("\t")[0] for line in block.splitlines() if line] for block in blocks]
    return [tokens for tokens in sentences if tokens]


def bc5cdr(blurb: Path) -> Iterator[GoldText]:
    for split, name in BC5CDR_FILES.items():
        sentences = read_token_file(blurb / "BC5CDR-chem" / f"{split}.tsv")
        ends = set(accumulate(sum(map(len, tokens)) for tokens in sentences))
        gold = "".join("".join(tokens) for tokens in sentences)
        pubtator = blurb.parent / "bc5cdr-pubtator" / f"CDR_{name}Set.PubTator.txt.gz"
        with gzip.open(pubtator, "rt", encoding="utf-8") as lines:
            fields = re.findall(r"^\d+\|[ta]\|(.*)$", lines.read(), re.MULTILINE)
        for title, abstract in zip(fields[::2], fields[1::2], strict=True):
            start = gold.find("".join((title + abstract).split()))
            if start < 0:
                continue  # the file TrainingSet also contains the dev documents
            for text in (title, abstract):
                length = len("".join(text.split()))
                yield text, frozenset(end - start for end in ends if start < end < start + length)
                start += length


def jnlpba(blurb: Path) -> Iterator[GoldText]:
    document: list[str] = []
    for tokens in [*read_token_file(blurb / "JNLPBA" / "train.tsv"), ["-DOCSTART-"]]:
        if tokens[0].startswith("-DOCSTART-"):
            if document:
                yield " ".join(document), boundaries(document)
            document = []
        else:
            document.append(detokenize(tokens))


def hoc(blurb: Path) -> Iterator[GoldText]:
    """Rows are sentences: labels, sentence, <PMID>_s<number>."""
    documents: dict[str, list[str]] = {}
    for split in ("train", "dev"):
        rows = (blurb / "HoC" / f"{split}.tsv").read_text(encoding="utf-8").split("\n")
        for row in filter(None, rows[1:]):
            _, sentence, index = row.split("\t")
            documents.setdefault(index.rsplit("_s", 1)[0], []).append(detokenize(sentence.split()))
    for sentences in documents.values():
        yield " ".join(sentences), boundaries(sentences)


def read_gold(path: Path) -> Iterator[GoldText]:
    """Read one sentence per line, with a blank line between texts."""
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        sentences = block.split("\n")
        yield " ".join(sentences), boundaries(sentences)


def detokenize(tokens: list[str]) -> str:
    text = re.sub(r'" ([^"]*) "', r'"\1"', " ".join(tokens))
    text = re.sub(r" ([.,;:?!%)\]}])", r"\1", text)
    text = re.sub(r"([(\[{]) ", r"\1", text)
    return re.sub(r" ([-/]) ", r"\1", text)


def pysbd() -> Splitter:
    return importlib.import_module("pysbd").Segmenter(language="en", clean=False).segment


def syntok() -> Splitter:
    segmenter = importlib.import_module("syntok.segmenter")

    def split(text: str) -> list[str]:
        starts = [sentence[0].offset for paragraph in segmenter.process(text) for sentence in paragraph]
        return [text[start:end] for start, end in zip([0, *starts[1:]], [*starts[1:], len(text)], strict=True)]

    return split


def sentencex() -> Splitter:
    segment = importlib.import_module("sentencex").segment
    return lambda text: list(segment("en", text))


def blingfire() -> Splitter:
    text_to_sentences = importlib.import_module("blingfire").text_to_sentences
    return lambda text: text_to_sentences(text).split("\n")


def segtok() -> Splitter:
    split_single = importlib.import_module("segtok.segmenter").split_single
    return lambda text: list(split_single(text))


def sentence_splitter() -> Splitter:
    return importlib.import_module("sentence_splitter").SentenceSplitter(language="en").split


def spacy() -> Splitter:
    pipeline = importlib.import_module("spacy").blank("en")
    pipeline.add_pipe("sentencizer")
    return lambda text: [sentence.text for sentence in pipeline(text).sents]


def nupunkt() -> Splitter:
    return importlib.import_module("nupunkt").sent_tokenize


def bert_pipeline() -> Splitter:
    return importlib.import_module("bert_pipeline.data.corpus.sentences").split_sentences


BLURB_SETS = {"BC5CDR": bc5cdr, "JNLPBA": jnlpba, "HoC": hoc}

LIBRARIES = {
    "pysbd": pysbd,
    "syntok": syntok,
    "sentencex": sentencex,
    "blingfire": blingfire,
    "segtok": segtok,
    "sentence-splitter": sentence_splitter,
    "spacy": spacy,
    "nupunkt": nupunkt,
    "bert-pipeline": bert_pipeline,
}


def measure(split: Splitter, texts: list[GoldText]) -> dict[str, float]:
    split(texts[0][0])  # loading at first use is not timed
    started = time.perf_counter()
    found = [split(text) for text, _ in texts]
    seconds = time.perf_counter() - started
    hits = expected = given = altered = 0
    for (text, gold), sentences in zip(texts, found, strict=True):
        guess = boundaries(sentences)
        hits, expected, given = hits + len(guess & gold), expected + len(gold), given + len(guess)
        altered += "".join("".join(sentences).split()) != "".join(text.split())
    return {
        "precision": hits / max(given, 1),
        "recall": hits / max(expected, 1),
        "f1": 2 * hits / max(given + expected, 1),
        "texts_altered": altered,
        "mb_per_second": sum(len(text.encode()) for text, _ in texts) / 1e6 / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gold", type=Path, nargs="+", default=[GOLD], help="files with one sentence per line")
    data = os.environ.get("BERT_PIPELINE_DATA")
    parser.add_argument("--blurb", type=Path, default=Path(data, "blurb") if data else None, help="BLURB's folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line instead of a table")
    arguments = parser.parse_args()
    sets = {path.stem: list(read_gold(path)) for path in arguments.gold}
    if arguments.blurb:
        sets |= {name: list(read(arguments.blurb)) for name, read in BLURB_SETS.items()}
    for name, library in LIBRARIES.items():
        try:
            release, split = version(name), library()
        except (PackageNotFoundError, ModuleNotFoundError):
            print(json.dumps({"library": name, "skipped": "not installed"}) if arguments.json else f"{name:18} skipped")
            continue
        for gold, texts in sets.items():
            scores = measure(split, texts)
            if arguments.json:
                print(json.dumps({"library": name, "version": release, "gold": gold} | scores))
            else:
                columns = "  ".join(f"{key} {value:.4f}" for key, value in scores.items() if key != "texts_altered")
                print(f"{name:18} {release:8} {gold:14} {columns}  texts_altered {scores['texts_altered']}")


if __name__ == "__main__":
    main()
