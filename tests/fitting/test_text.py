"""The facts of a text, from text whose facts are known; and the fields of records."""

import json

import pytest

from bert_pipeline.data.sources.records import Document, SourceError
from bert_pipeline.fitting.fields import choose_fields
from bert_pipeline.fitting.text import describe
from bert_pipeline.planning.survey import Survey


def survey(texts, share_read=1.0):
    found = Survey(share_read=share_read)
    found.sample = [Document(str(number), (text,), "") for number, text in enumerate(texts)]
    found.documents = {"train": len(texts), "heldout": 0}
    return found


def test_size_languages_sentences_and_repetitions():
    english = [
        f"The patients of hospital {n} recovered within {n} days. Nobody reported headache number {n * 7}, and "
        f"a second visit to ward {n * 3} was not needed for any of them."
        for n in range(60)
    ]
    german = [f"Die Patienten in Zimmer {n} erholten sich nach wenigen Tagen von ihrer Krankheit" for n in range(20)]
    text = describe(survey([*english, *german, *english[:20]], share_read=0.5))
    assert text.documents == 200
    assert text.words == pytest.approx(2 * sum(len(each.split()) for each in [*english, *german, *english[:20]]))
    assert list(text.languages) == ["en", "de"] and text.languages["de"] == pytest.approx(0.2)
    assert text.one_sentence == pytest.approx(0.2)
    assert 0.2 <= text.near_duplicates < 0.9
    assert describe(survey(german)).one_sentence == 1


def test_a_part_of_the_documents_is_spread_over_all_files():
    """The sample follows the files: here one of titles, then one of abstracts as long."""
    titles = [f"Aspirin and headache in ward {n}" for n in range(1_000)]
    abstracts = [f"Nobody recovered in ward {n}. A second visit was needed." for n in range(1_000)]
    assert describe(survey([*titles, *abstracts])).one_sentence == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("The patients recovered.", 3),
        ("환자들은 매일 약을 복용하였다.", 4),
        ("患者每天服药没有副作用", 6),
        ("ผู้ป่วย ได้รับ ยา", 11),
    ],
)
def test_words_of_scripts_without_blanks_are_counted_by_letters(sentence, words):
    assert describe(survey([sentence] * 8)).words_per_document == pytest.approx(words, abs=1)


ARTICLE = (
    "<article><front><article-meta><title-group><article-title>Aspirin</article-title></title-group><abstract><p>It "
    "helps.</p></abstract></article-meta></front><body><p>Nobody was harmed.</p></body></article>"
)
RECORDS = [{"pmid": n, "title": f"Title {n}", "abstract": "One sentence. Two."} for n in range(9)]


def as_lines(records):
    return "\n".join(map(json.dumps, records))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.txt": "Some text.", "b.md.txt": "More."}, (("text",), "")),
        ({"a.jsonl": as_lines(RECORDS)}, (("title", "abstract"), "pmid")),
        ({"a.json": json.dumps([{"id": 1, "text": "Same id."}] * 9)}, (("text",), "")),
        ({"a.csv": "id;note\n1;It hurts.\n2;It is over."}, (("note",), "id")),
        ({"a.xml": ARTICLE}, (("title", "abstract", "body"), "")),
        ({"a.jsonl": as_lines([*RECORDS * 3, {"pmid": 1}])}, (("title", "abstract"), "")),
        ({"a.jsonl": as_lines(RECORDS), "b.txt": "plain"}, (("title", "abstract"), "pmid")),
    ],
)
def test_the_usual_fields_are_found(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert choose_fields(str(tmp_path)) == expected


def test_unusual_fields_are_refused_with_their_names(tmp_path):
    (tmp_path / "a.csv").write_text("nr,befund\n1,Es schmerzt.\n")
    with pytest.raises(SourceError, match=r"no usual text field.*the columns are nr, befund.*remedy: rename it"):
        choose_fields(str(tmp_path))


def test_a_broken_file_is_named_as_what_it_is(tmp_path):
    (tmp_path / "a.parquet").write_text("plain text")
    with pytest.raises(SourceError, match=r"^\S*a\.parquet: its name ends in \.parquet, but its content is plain text"):
        choose_fields(str(tmp_path))
