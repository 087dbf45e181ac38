"""Generate PubMed files in NLM's format from a seed: for tests, and for measurements at PubMed's scale.

    python -m benchmarks.pubmed_files --out DIR --files 20 --citations 30000 [--updates 2 --revised-fraction 0.7]

    DIR/baseline/pubmed26n0001.xml.gz     PMIDs 1, 2, ... in files of equal size, each with its .md5
    DIR/updatefiles/pubmed26n0021.xml.gz  new PMIDs, revisions of earlier ones, and the deleted PMIDs at the end

The files follow https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd and have about PubMed's sizes: 6 KB per
citation with authors, MeSH and references, a third without abstract. A sentence consists of the head of one sentence of
the generated sample (data/sources/sample), invented words drawn by Zipf's law, and the tail of another sentence: two
abstracts hardly ever share a sentence, except for the intended near duplicates. A citation is a function of
(seed, PMID), a revision of (seed, PMID, file number).
"""

import argparse
import hashlib
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import NamedTuple
from xml.sax.saxutils import escape

from bert_pipeline.data.sources.sample.documents import sample_documents

HEAD = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" \
"https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd">
<PubmedArticleSet>
"""
TAIL = "</PubmedArticleSet>\n"
COMPRESSION = 1
CITATIONS_PER_WRITE = 200
SAMPLE_DOCUMENTS, NUM_WORDS, NUM_CLAUSES, NUM_NAMES = 600, 30_000, 4_000, 1_500
SENTENCE_END = re.compile(r"(?<=[a-z)]\.) (?=[A-Z])")

ABSTRACTS = ("none", "plain", "structured", "near duplicate")
ABSTRACT_WEIGHTS = (0.33, 0.37, 0.28, 0.02)
SECTIONS = (
    ("BACKGROUND", "BACKGROUND"),
    ("METHODS", "METHODS"),
    ("RESULTS", "RESULTS"),
    ("CONCLUSION", "CONCLUSIONS"),
    ("TRIAL REGISTRATION", "UNASSIGNED"),
)
TYPES = (
    ("D016428", "Journal Article"),
    ("D016454", "Review"),
    ("D016449", "Randomized Controlled Trial"),
    ("D013485", "Research Support, Non-U.S. Gov't"),
    ("D002363", "Case Reports"),
    ("D016422", "Letter"),
)
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SEASONS = ("Spring", "Summer", "Fall", "Winter")
LANGUAGES = ("fre", "ger", "spa", "chi", "jpn", "rus", "por")
MARKUP = (
    "<i>in vitro</i>",
    "<i>in vivo</i>",
    "of CO<sub>2</sub>",
    "of 10<sup>-6</sup> M TNF-α",
    "<b>after</b> 2 &#x3bc;g",
    "of <u>IL-2</u> &amp;",
    '<mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:mi>k</mml:mi><mml:mo>=</mml:mo>'
    "<mml:mn>2</mml:mn></mml:math>",
    "of <i>H<sub>2</sub>S</i>",
    "&lt; 5 °C in",
)
CONSONANTS = ("b", "c", "d", "f", "g", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "cl", "dr", "fl", "pr", "tr")
FREQUENT = ("the", "of", "in", "and", "with", "for", "to", "by", "from", "on", "a", "or")


class Pieces(NamedTuple):
    """Strings of XML from which the citations of one seed are assembled."""

    heads: list[str]  # of sentences
    middles: list[str]
    tails: list[str]
    authors: list[str]
    headings: list[str]
    journals: list[tuple[str, str]]
    references: list[str]
    keywords: list[str]


def write_pubmed_files(
    folder: Path,
    num_files: int,
    citations_per_file: int,
    seed: int = 0,
    *,
    num_updates: int = 0,
    revised_fraction: float = 0.7,
    deleted_fraction: float = 0.01,
    year: int = 26,
    workers: int = 1,
) -> list[Path]:
    """Write the files into folder/baseline and folder/updatefiles; return their paths in the order of their numbers.

    An update file has as many citations as a baseline file; a share of `revised_fraction` revises PMIDs of earlier
    files. In addition, it deletes `deleted_fraction` times this number of PMIDs.
    """
    numbers = range(1, num_files + num_updates + 1)
    paths = [
        folder / ("baseline" if number <= num_files else "updatefiles") / f"pubmed{year:02d}n{number:04d}.xml.gz"
        for number in numbers
    ]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    num_new = citations_per_file - round(citations_per_file * revised_fraction)
    num_deleted = round(citations_per_file * deleted_fraction)
    jobs = []
    for number, path in zip(numbers, paths, strict=True):
        updates_before = max(0, number - num_files - 1)
        known = min(number - 1, num_files) * citations_per_file + updates_before * num_new
        if number <= num_files:
            jobs.append((path, number, seed, known, citations_per_file, 0, 0))
        else:
            jobs.append((path, number, seed, known, num_new, citations_per_file - num_new, num_deleted))
    if workers == 1:
        for job in jobs:
            _write_file(*job)
    else:
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(_write_file, *zip(*jobs, strict=True)))
    return paths


def _write_file(
    path: Path, number: int, seed: int, known: int, num_new: int, num_revised: int, num_deleted: int
) -> None:
    """Write one file; PMIDs 1..known are in earlier files."""
    rng = Random(f"pubmed file {seed} {number}")
    touched = rng.sample(range(1, known + 1), min(known, num_revised + num_deleted))
    revised, deleted = sorted(touched[:num_revised]), sorted(touched[num_revised:])
    compress, digest = zlib.compressobj(COMPRESSION, wbits=31), hashlib.md5(usedforsecurity=False)
    with path.open("wb") as file:

        def write(text: str, last: bool = False) -> None:
            packed = compress.compress(text.encode()) + (compress.flush() if last else b"")
            digest.update(packed)
            file.write(packed)

        write(HEAD)
        waiting: list[str] = []
        for citation in _citations(seed, range(known + 1, known + num_new + 1), revised, number):
            waiting.append(citation)
            if len(waiting) == CITATIONS_PER_WRITE:
                write("".join(waiting))
                waiting.clear()
        if deleted:
            pmids = "".join(f'    <PMID Version="1">{pmid}</PMID>\n' for pmid in deleted)
            waiting.append(f"  <DeleteCitation>\n{pmids}  </DeleteCitation>\n")
        write("".join(waiting) + TAIL, last=True)
    path.with_name(f"{path.name}.md5").write_text(f"MD5({path.name})= {digest.hexdigest()}\n", encoding="utf-8")


def _citations(seed: int, new: Sequence[int], revised: Sequence[int], file_number: int) -> Iterator[str]:
    pieces = _pieces(seed)
    for pmid in new:
        rng = Random((seed << 40) + pmid)
        if pmid % 1009 == 0:  # two versions of a citation, as from journals with open revisions
            yield _citation(pieces, rng, pmid, version=1)
            rng = Random((seed << 40) + pmid)
            yield _citation(pieces, rng, pmid, version=2)
        elif pmid % 499 == 0:
            yield _citation(pieces, rng, pmid, notice_of=pmid - 7)
        else:
            yield _citation(pieces, rng, pmid)
    for pmid in revised:
        yield _citation(pieces, Random((seed << 40) + pmid), pmid, revision=file_number, retracted=pmid % 97 == 0)


def _citation(
    pieces: Pieces,
    rng: Random,
    pmid: int,
    version: int = 1,
    revision: int = 0,
    notice_of: int = 0,
    retracted: bool = False,
) -> str:
    """One PubmedArticle. The parts that a revision does not change are drawn first."""
    draw, choices = rng.random, rng.choices
    year, month, day = 1975 + int(draw() * 50), 1 + int(draw() * 12), 1 + int(draw() * 28)
    journal, journal_ids = pieces.journals[int(draw() ** 2 * len(pieces.journals))]
    title = " ".join((*choices(pieces.heads), *choices(pieces.middles))) + "."
    foreign = draw() < 0.06
    if foreign:
        title = f"[{title}]."
    abstract = _abstract(pieces, rng, pmid, revision)
    authors = "\n".join(choices(pieces.authors, k=1 + int(draw() * 8)))
    language = choices(LANGUAGES)[0] if foreign else "eng"
    other_abstract = vernacular = links = ""
    if foreign:
        vernacular = f"        <VernacularTitle>{choices(pieces.middles)[0]}.</VernacularTitle>\n"
        other_abstract = (
            f'      <OtherAbstract Type="Publisher" Language="{language}">\n        <AbstractText>'
            f"{' '.join(choices(pieces.middles, k=12))}.</AbstractText>\n      </OtherAbstract>\n"
        )
    types = [TYPES[0], *choices(TYPES[1:], k=int(draw() * 3))]
    if notice_of:
        types = [("D016440", "Retraction of Publication")]
        links = _link("RetractionOf", notice_of)
    elif retracted:
        types.append(("D016441", "Retracted Publication"))
        links = _link("RetractionIn", pmid + 7)
    elif draw() < 0.05:
        links = _link(choices(("ErratumIn", "CommentIn", "ErratumFor", "UpdateOf"))[0], 1 + int(draw() * pmid))
    headings = references = keywords = ""
    if draw() < 0.75:
        found = "\n".join(choices(pieces.headings, k=4 + int(draw() * 12)))
        headings = f"      <MeshHeadingList>\n{found}\n      </MeshHeadingList>\n"
    if draw() < 0.35:
        found = "\n".join(choices(pieces.keywords, k=3 + int(draw() * 4)))
        keywords = f'      <KeywordList Owner="NOTNLM">\n{found}\n      </KeywordList>\n'
    if draw() < 0.3:
        found = "\n".join(choices(pieces.references, k=5 + int(draw() * 30)))
        references = f"      <ReferenceList>\n{found}\n      </ReferenceList>\n"
    listed = "\n".join(f'          <PublicationType UI="{ui}">{name}</PublicationType>' for ui, name in types)
    doi = f"10.{1000 + pmid % 9000}/j.{pmid:x}"
    location = (
        f'        <ELocationID EIdType="doi" ValidYN="Y">{doi}</ELocationID>\n' if year > 2000 and draw() < 0.9 else ""
    )
    pmc = f'        <ArticleId IdType="pmc">PMC{pmid + 5_000_000}</ArticleId>\n' if year > 2005 and draw() < 0.4 else ""
    revised_year = 2026 if revision else min(2025, year + 2)
    return f"""\
  <PubmedArticle>
    <MedlineCitation Status="MEDLINE" Owner="NLM" IndexingMethod="Automated">
      <PMID Version="{version}">{pmid}</PMID>
      <DateCompleted>
        <Year>{year + 1}</Year>
        <Month>{month:02d}</Month>
        <Day>{day:02d}</Day>
      </DateCompleted>
      <DateRevised>
        <Year>{revised_year}</Year>
        <Month>{1 + revision % 12:02d}</Month>
        <Day>{day:02d}</Day>
      </DateRevised>
      <Article PubModel="Print-Electronic">
        <Journal>
{journal}
          <JournalIssue CitedMedium="Internet">
            <Volume>{1 + year - 1970}</Volume>
            <Issue>{month}</Issue>
            <PubDate>
{_date(rng, year, month, day)}
            </PubDate>
          </JournalIssue>
        </Journal>
        <ArticleTitle>{title}</ArticleTitle>
        <Pagination>
          <StartPage>{pmid % 900 + 1}</StartPage>
          <EndPage>{pmid % 900 + 9}</EndPage>
          <MedlinePgn>{pmid % 900 + 1}-{pmid % 900 + 9}</MedlinePgn>
        </Pagination>
{location}{abstract}        <AuthorList CompleteYN="Y">
{authors}
        </AuthorList>
        <Language>{language}</Language>
        <PublicationTypeList>
{listed}
        </PublicationTypeList>
{vernacular}      </Article>
{journal_ids}
      <CitationSubset>IM</CitationSubset>
{links}{headings}{other_abstract}{keywords}    </MedlineCitation>
    <PubmedData>
      <History>
        <PubMedPubDate PubStatus="pubmed">
          <Year>{year}</Year>
          <Month>{month}</Month>
          <Day>{day}</Day>
        </PubMedPubDate>
        <PubMedPubDate PubStatus="medline">
          <Year>{year}</Year>
          <Month>{month}</Month>
          <Day>{day}</Day>
          <Hour>0</Hour>
          <Minute>1</Minute>
        </PubMedPubDate>
        <PubMedPubDate PubStatus="entrez">
          <Year>{year}</Year>
          <Month>{month}</Month>
          <Day>{day}</Day>
          <Hour>0</Hour>
          <Minute>0</Minute>
        </PubMedPubDate>
      </History>
      <PublicationStatus>ppublish</PublicationStatus>
      <ArticleIdList>
        <ArticleId IdType="pubmed">{pmid}</ArticleId>
{pmc}        <ArticleId IdType="doi">{doi}</ArticleId>
      </ArticleIdList>
{references}    </PubmedData>
  </PubmedArticle>
"""


def _abstract(pieces: Pieces, rng: Random, pmid: int, revision: int) -> str:
    kind = rng.choices(ABSTRACTS, ABSTRACT_WEIGHTS)[0]
    if kind == "none":
        return ""
    near = kind == "near duplicate"  # same abstract except for the last sentence
    source = Random(-1 - pmid // 50) if near else rng
    sentences = _sentences(pieces, source, 5 + int(source.random() * 8))
    if near:
        sentences[-1] = _sentences(pieces, rng, 1)[0]
    if revision:
        sentences.append(f"Corrected in file {revision}.")
    if kind != "structured":
        return (
            f"        <Abstract>\n          <AbstractText>{' '.join(sentences)}</AbstractText>\n        </Abstract>\n"
        )
    num_sections = 4 + (rng.random() < 0.1)
    parts = [" ".join(sentences[i::num_sections]) for i in range(num_sections)]
    texts = "\n".join(
        f'          <AbstractText Label="{label}" NlmCategory="{category}">{part}</AbstractText>'
        for (label, category), part in zip(SECTIONS, parts, strict=False)
    )
    owner = "          <CopyrightInformation>© 2020 The Authors.</CopyrightInformation>\n" if rng.random() < 0.3 else ""
    return f"        <Abstract>\n{texts}\n{owner}        </Abstract>\n"


def _sentences(pieces: Pieces, rng: Random, count: int) -> list[str]:
    parts = [rng.choices(part, k=count) for part in (pieces.heads, pieces.middles, pieces.tails)]
    return list(map(" ".join, zip(*parts, strict=True)))


def _date(rng: Random, year: int, month: int, day: int) -> str:
    kind, indent = rng.random(), " " * 14
    name = MONTHS[month - 1]
    if kind < 0.05:
        return f"{indent}<MedlineDate>{year} {name}-{MONTHS[month % 12]}</MedlineDate>"
    if kind < 0.07:
        return f"{indent}<Year>{year}</Year>\n{indent}<Season>{SEASONS[month // 4]}</Season>"
    if kind < 0.15:
        return f"{indent}<Year>{year}</Year>"
    dated = f"{indent}<Year>{year}</Year>\n{indent}<Month>{name if kind < 0.8 else f'{month:02d}'}</Month>"
    return dated if kind < 0.5 else f"{dated}\n{indent}<Day>{day:02d}</Day>"


def _link(kind: str, pmid: int) -> str:
    return (
        f'      <CommentsCorrectionsList>\n        <CommentsCorrections RefType="{kind}">\n'
        f"          <RefSource>J Invent Med. 2020;1(1):1-2</RefSource>\n"
        f'          <PMID Version="1">{pmid}</PMID>\n        </CommentsCorrections>\n      </CommentsCorrectionsList>\n'
    )


@lru_cache(maxsize=2)
def _pieces(seed: int) -> Pieces:
    rng = Random(f"pubmed pieces {seed}")
    syllables = [consonant + vowel for consonant in CONSONANTS for vowel in "aeiou"]
    words = list(dict.fromkeys("".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(NUM_WORDS)))
    words[: len(FREQUENT)] = FREQUENT
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))

    def clause(low: int, high: int) -> str:
        return " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(low, high)))

    def name() -> str:
        return "".join(rng.choices(syllables, k=rng.randint(2, 4))).capitalize()

    sentences = [
        escape(sentence).split()
        for _, text in sample_documents(SAMPLE_DOCUMENTS, seed)
        for sentence in SENTENCE_END.split(text)
    ]
    authors = [
        f'          <Author ValidYN="Y">\n            <LastName>{name()}</LastName>\n'
        f"            <ForeName>{name()} {name()[0]}</ForeName>\n            <Initials>{name()[0]}</Initials>\n"
        + (
            f"            <AffiliationInfo>\n              <Affiliation>Department of {name()}, University of "
            f"{name()}, {name()} {rng.randint(1000, 9999)}, {name()}.</Affiliation>\n            </AffiliationInfo>\n"
            if rng.random() < 0.7
            else ""
        )
        + "          </Author>"
        for _ in range(NUM_NAMES)
    ]
    headings = []
    for number in range(NUM_NAMES):
        qualifier = '\n          <QualifierName UI="Q000188" MajorTopicYN="Y">drug therapy</QualifierName>'
        headings.append(
            f'        <MeshHeading>\n          <DescriptorName UI="D{number + 1:06d}" MajorTopicYN="N">{name()}, '
            f"{name()}</DescriptorName>{qualifier * (number % 3 == 0)}\n        </MeshHeading>"
        )
    journals = []
    for number in range(NUM_NAMES // 5):
        title, issn = f"Journal of {name().lower()} &amp; {name().lower()}", f"{1000 + number}-{number % 1000:03d}X"
        short, nlm_id = f"J {name()[:4]} {name()[:3]}", f"{number + 100:07d}R"
        journals.append(
            (
                f'          <ISSN IssnType="Electronic">{issn}</ISSN>\n          <Title>{title}</Title>\n'
                f"          <ISOAbbreviation>{short}.</ISOAbbreviation>",
                f"      <MedlineJournalInfo>\n        <Country>United States</Country>\n        <MedlineTA>{short}"
                f"</MedlineTA>\n        <NlmUniqueID>{nlm_id}</NlmUniqueID>\n        <ISSNLinking>{issn}</ISSNLinking>"
                "\n      </MedlineJournalInfo>",
            )
        )
    references = [
        f"        <Reference>\n          <Citation>{name()} A, {name()} B. {clause(6, 12)}. J {name()}. 2010;3:1-9."
        f'</Citation>\n          <ArticleIdList>\n            <ArticleId IdType="pubmed">{rng.randint(1, 30_000_000)}'
        "</ArticleId>\n          </ArticleIdList>\n        </Reference>"
        for _ in range(NUM_NAMES)
    ]
    return Pieces(
        heads=[" ".join(words[: len(words) // 2]) for words in sentences],
        middles=[clause(2, 5) if number % 40 else rng.choice(MARKUP) for number in range(NUM_CLAUSES)],
        tails=[" ".join(words[len(words) // 2 :]) for words in sentences],
        authors=authors,
        headings=headings,
        journals=journals,
        references=references,
        keywords=[f'        <Keyword MajorTopicYN="N">{clause(1, 2)}</Keyword>' for _ in range(NUM_NAMES)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--files", type=int, default=4, help="number of baseline files")
    parser.add_argument("--citations", type=int, default=30_000, help="citations per file")
    parser.add_argument("--updates", type=int, default=0, help="number of update files")
    parser.add_argument("--revised-fraction", type=float, default=0.7, help="share of revisions in an update file")
    parser.add_argument("--deleted-fraction", type=float, default=0.01, help="deleted PMIDs per citation of a file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the text")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: the cores")
    given = parser.parse_args()
    write_pubmed_files(
        given.out,
        given.files,
        given.citations,
        given.seed,
        num_updates=given.updates,
        revised_fraction=given.revised_fraction,
        deleted_fraction=given.deleted_fraction,
        workers=given.workers,
    )


if __name__ == "__main__":
    main()
