"""PubTator to token files: the rules by example, errors, and the real corpus byte for byte."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.cli import main
from bert_pipeline.evaluation.tasks.pubtator import (
    Mention,
    PubtatorDocument,
    convert_bc5cdr,
    read_pubtator,
    sentence_spans,
    tag,
)
from bert_pipeline.evaluation.tasks.task import TaskError

REAL = Path(os.environ.get("BERT_PIPELINE_DATA", "")) / "bc5cdr-pubtator"

ABSTRACTS = {
    "11": ("Aspirin-induced asthma.", "Aspirin (ASA) was given. No asthma, i.e. no wheeze, was seen.", 4),
    "9": ("Rash.", "Two had rash after 5-FU.", 1),
    "100": ("Nausea after iron.", "Iron caused nausea.", 2),
}
WORDS = {"Aspirin": "Chemical", "ASA": "Chemical", "5-FU": "Chemical", "ron": "Chemical", "rash": "Disease"}
WORDS |= {"asthma": "Disease", "ausea": "Disease"}


def record(pmid: str) -> str:
    title, abstract, _ = ABSTRACTS[pmid]
    text = f"{title} {abstract}"
    lines = [f"{pmid}|t|{title}", f"{pmid}|a|{abstract}"]
    for word, type_ in WORDS.items():
        start = text.find(word)
        while start >= 0:
            lines.append(f"{pmid}\t{start}\t{start + len(word)}\t{word}\t{type_}\tD1")
            start = text.find(word, start + 1)
    return "\n".join([*lines, f"{pmid}\tCID\tD1\tD2"]) + "\n\n"


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "pubtator"
    folder.mkdir()
    with gzip.open(folder / "CDR_TrainingSet.PubTator.txt.gz", "wt") as file:
        file.write(record("9") + record("11"))  # the second release: train and dev
    (folder / "CDR_DevelopmentSet.PubTator.txt").write_text(record("9"))
    (folder / "CDR_TestSet.PubTator.txt").write_text(record("100"))
    return folder


def test_a_corpus_becomes_token_files(corpus, tmp_path):
    facts = convert_bc5cdr([corpus], tmp_path / "out")
    train = (tmp_path / "out" / "BC5CDR-chem" / "train.tsv").read_text()
    title, *sentences = train.removesuffix("\n\n").split("\n\n")
    assert title.split("\n") == ["Aspirin\tB", "-\tO", "induced\tO", "asthma\tO", ".\tO"]
    assert sentences[0].startswith("Aspirin\tB\n(\tO\nASA\tB\n)\tO\nwas\tO\n")
    assert [sentence.split("\t")[0] for sentence in sentences] == ["Aspirin", "No"]
    dev = (tmp_path / "out" / "BC5CDR-chem" / "dev.tsv").read_text()
    assert "\n5\tB\n-\tI\nFU\tI\n.\tO\n\n" in dev
    assert "\nrash\tB\n" in (tmp_path / "out" / "BC5CDR-disease" / "dev.tsv").read_text()
    documents = (tmp_path / "out" / "BC5CDR-chem" / "documents.tsv").read_text()
    assert documents == "train\t11\t3\ndev\t9\t2\ntest\t100\t2\n"
    assert [each["entities"] for each in facts["BC5CDR-chem"].values()] == [3, 1, 2]
    assert facts["BC5CDR-disease"]["train"]["mentions"] == facts["BC5CDR-disease"]["train"]["entities"] == 2
    assert facts["BC5CDR-chem"]["train"]["sha256"] == hashlib.sha256(train.encode()).hexdigest()


def test_documents_are_in_the_order_of_their_pmids_as_text(corpus, tmp_path):
    (corpus / "CDR_TestSet.PubTator.txt").write_text(record("100").replace("100", "8") + record("100"))
    convert_bc5cdr([corpus], tmp_path / "out")
    rows = (tmp_path / "out" / "BC5CDR-chem" / "documents.tsv").read_text().splitlines()
    assert rows[-2:] == ["test\t100\t2", "test\t8\t2"]


def test_three_files_give_what_their_folder_gives(corpus, tmp_path):
    assert convert_bc5cdr(sorted(corpus.iterdir()), tmp_path / "a") == convert_bc5cdr([corpus], tmp_path / "b")


@pytest.mark.parametrize(
    "sentences",
    [
        ["One ended.", "Two began."],
        ["No break after e.g. Warfarin or i.v. Heparin.", "But here."],
        ["None before a word in lower case, vs. that of E. coli.", "Here."],
        ["Brackets (as these. Here.) hold [it all. Together].", "Open (bracket.", "Does not."],
        ["Given to Anton P. Chekhov.", "Twice."],
        ["Was it?", "Yes!", "It was 5.5 mg."],
        ["A mark.", ". Alone begins a sentence."],
        ["It went on. with a word that begins none.", "End."],
    ],
)
def test_sentences_end_where_the_benchmark_ends_them(sentences):
    text = " ".join(sentences)
    assert [text[start:end].strip() for start, end in sentence_spans(text)] == sentences


def test_a_title_ends_a_sentence_even_in_brackets_and_without_a_mark():
    text = "A title (that goes\nand an abstract) so."
    assert [text[start:end].strip() for start, end in sentence_spans(text)] == text.split("\n")


@given(st.text("aB.?!()[] \n1", max_size=60))
def test_sentences_cover_the_text_and_lines_end_them(text):
    spans = sentence_spans(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert not any("\n" in text[start:end].strip() for start, end in spans)


@given(st.text("ab1-. \n", min_size=1, max_size=40), st.data())
def test_mentions_are_counted_whole(text, data):
    positions = st.integers(0, len(text))
    pairs = data.draw(st.lists(st.tuples(positions, positions).filter(lambda pair: pair[0] < pair[1]), max_size=6))
    tagged = tag(PubtatorDocument("1", text, tuple(Mention(*pair, "Disease") for pair in pairs)), "Disease")
    tokens = [token for sentence in tagged.sentences for token, _ in sentence]
    assert "".join(tokens) == "".join(text.split())
    for sentence in tagged.sentences:
        tags = [tag for _, tag in sentence]
        assert all(before != "O" for before, after in zip(["O", *tags], tags, strict=False) if after == "I")
    assert tagged.num_cut >= 0
    assert tagged.num_mentions == len(pairs)


def test_overlapping_mentions_and_mentions_without_a_token_are_dropped():
    def tags(text, *spans):
        tagged = tag(PubtatorDocument("1", text, tuple(Mention(*span, "Disease") for span in spans)), "Disease")
        facts = tagged.num_entities, tagged.num_overlapping, tagged.num_without_token, tagged.num_cut
        return " ".join(tag for sentence in tagged.sentences for _, tag in sentence), facts

    assert tags("renal and hepatic failure", (0, 25), (10, 25)) == ("B I I I", (1, 1, 0, 0)), "the longer one stays"
    assert tags("renal failure coma", (0, 13), (14, 18)) == ("B I B", (2, 0, 0, 0)), "side by side"
    assert tags("HIVHCV", (0, 3), (3, 6)) == ("B", (1, 0, 1, 0)), "two in one token"
    assert tags("Of St. Anthony's fire", (3, 21)) == ("O B I B I I I", (2, 0, 0, 1)), "cut by a sentence's end"


FAULTS = {
    "no title": ("11|t|", "11|x|", ":1: no title line: '11|x|"),
    "no abstract": ("11|a|", "11|b|", ":2: no abstract line: '11|b|"),
    "abstract of another": ("11|a|", "12|a|", ":2: no abstract line: '12|a|"),
    "another document": ("11\tCID", "12\tCID", ":8: a line of another document than 11: '12\\tCID"),
    "no tabs": ("11\t0\t7\t", "11 0 7 ", ":3: a line of another document"),
    "no numbers": ("11\t0\t7", "11\tx\t7", ":3: not a mention: '11\\tx\\t7"),
    "too few fields": ("Chemical\tD1", "Chemical", ":3: not a mention"),
    "beyond the text": ("11\t0\t7\t", "11\t0\t900\t", ":3: a mention outside the 85 characters"),
    "end before start": ("11\t0\t7\t", "11\t7\t7\t", ":3: a mention outside the 85 characters"),
    "other text": ("11\t0\t7\t", "11\t1\t8\t", ":3: a mention whose offsets select 'spirin-': 'Aspirin'"),
    "unknown type": ("Chemical", "Species", ":3: a mention of unknown type: 'Species'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_with_file_and_line(fault, tmp_path):
    right, wrong, message = FAULTS[fault]
    path = tmp_path / "CDR_TestSet.PubTator.txt"
    path.write_text(record("11").replace(right, wrong, 1))
    with pytest.raises(TaskError) as raised:
        read_pubtator(path)
    assert f"{path}{message}" in str(raised.value)
    assert "remedy: " in str(raised.value)


def test_a_repeated_pmid_is_refused(tmp_path):
    path = tmp_path / "CDR_TestSet.PubTator.txt"
    path.write_text(record("9") + "\n\n" + record("9"))
    with pytest.raises(TaskError, match=r":9: a duplicate PMID: '9'"):
        read_pubtator(path)


CUT_OFF = gzip.compress(record("9").encode(), mtime=0)[:-9]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", CUT_OFF, b"no gzip"])
def test_incomplete_files_are_refused(content, tmp_path):
    suffix = ".gz" if content[:2] == b"\x1f\x8b" or content == b"no gzip" else ""
    path = tmp_path / f"CDR_TestSet.PubTator.txt{suffix}"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=r"CDR_TestSet.* remedy: download the file again"):
        read_pubtator(path)


def test_windows_line_ends_and_a_missing_last_line_end_change_nothing(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    paths[0].write_text(record("9") + record("11"))
    paths[1].write_bytes((record("9") + record("11")).rstrip("\n").replace("\n", "\r\n").encode())
    assert read_pubtator(paths[0]) == read_pubtator(paths[1])


def test_missing_duplicate_and_inconsistent_files_are_refused(corpus, tmp_path):
    development = corpus / "CDR_DevelopmentSet.PubTator.txt"
    (corpus / f"{development.name}.gz").write_bytes(gzip.compress(development.read_bytes()))
    with pytest.raises(TaskError, match=r"both the DevelopmentSet; remedy"):
        convert_bc5cdr([corpus], tmp_path / "out")
    (corpus / f"{development.name}.gz").unlink()
    development.write_text(record("9").replace("Two had", "Six had"))
    with pytest.raises(TaskError, match=r"PMID 9 is in both .*TrainingSet.* and .*DevelopmentSet"):
        convert_bc5cdr([corpus], tmp_path / "out")
    development.write_text(record("100"))
    with pytest.raises(TaskError, match=r"PMID 100 is in both .*DevelopmentSet.* and .*TestSet"):
        convert_bc5cdr([corpus], tmp_path / "out")
    development.unlink()
    with pytest.raises(TaskError, match=r"no CDR_DevelopmentSet.PubTator.txt .*remedy"):
        convert_bc5cdr([corpus], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(corpus, tmp_path, capsys):
    assert main(["convert-bc5cdr", "--pubtator", str(corpus), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["BC5CDR-disease"]["test"]["entities"] == 2
    assert main(["convert-bc5cdr", "--pubtator", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "no CDR_TrainingSet.PubTator.txt" in capsys.readouterr().err


@pytest.mark.skipif(not REAL.is_dir(), reason="BERT_PIPELINE_DATA holds no bc5cdr-pubtator")
def test_the_real_corpus_becomes_the_benchmarks_files_byte_for_byte(tmp_path):
    facts = convert_bc5cdr([REAL], tmp_path)
    entities = {name: [each["entities"] for each in splits.values()] for name, splits in facts.items()}
    assert entities == {"BC5CDR-chem": [5203, 5347, 5385], "BC5CDR-disease": [4182, 4246, 4424]}
    dev = facts["BC5CDR-disease"]["dev"]
    assert (dev["mentions"], dev["mentions_cut_by_a_sentence_end"]) == (4244, 2)
    left_out = [sum(each["mentions_left_out"].values()) for splits in facts.values() for each in splits.values()]
    assert left_out == [0] * 6
    for name, splits in facts.items():
        for split in splits:
            ours, theirs = (root / name / f"{split}.tsv" for root in (tmp_path, REAL.parent / "blurb"))
            assert ours.read_bytes() == theirs.read_bytes(), ours
