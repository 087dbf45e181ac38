"""Tables in text files: delimiters, quotation marks that are text, and rows that a quotation mark would swallow."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bert_pipeline.data.sources.delimited_readers import CHECK_EVERY, read_csv, read_tsv
from bert_pipeline.data.sources.files import read_documents
from bert_pipeline.data.sources.records import Document, Fault, Rejection, SourceError
from bert_pipeline.data.sources.wanted import Wanted


def read(path: Path, data: str, text_fields=("text",), id_field="id", **options) -> list[Document | Rejection]:
    path.write_text(data, newline="")
    return list(read_documents({path.name: path}, text_fields, id_field, **options))


def ids_and_texts(documents: list) -> list[tuple[str, ...]]:
    return [(each.document_id, *each.texts) for each in documents]


def rows_with_open_quote(delimiter: str) -> str:
    """200 rows without quoting; the text of row 10 begins with a quotation mark, that of row 30 ends with one."""
    texts = [f"Case {number} is closed" for number in range(200)]
    texts[10], texts[30] = f'"{texts[10]}', f'{texts[30]}"'
    return f"id{delimiter}text\n" + "".join(f"{number}{delimiter}{text}\n" for number, text in enumerate(texts))


def test_every_row_of_a_tsv_is_a_document_whatever_quotation_marks_it_holds(tmp_path):
    documents = read(tmp_path / "a.tsv", rows_with_open_quote("\t"))
    assert [each.document_id for each in documents] == [str(number) for number in range(200)]
    assert documents[10].texts == ('"Case 10 is closed',) and documents[20].texts == ("Case 20 is closed",)


def test_a_tsv_text_that_begins_with_a_quoted_word_is_read_as_it_is(tmp_path):
    text = '"Aspirin" in dose 5" tubes'
    assert ids_and_texts(read(tmp_path / "a.tsv", f"id\ttext\r\n1\t{text}\r\n")) == [("1", text)]


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n\ufeff"), max_size=8)


@given(st.lists(st.tuples(CELLS.map(lambda text: "i" + text), CELLS.map(lambda text: "t" + text)), min_size=1))
def test_a_tsv_is_what_splitting_at_tabs_gives(rows):
    data = "id\ttext\n" + "".join("\t".join(row) + "\n" for row in rows)
    found = [record for _, record in read_tsv(io.BytesIO(data.encode()), Wanted(("text",), "id"))]
    assert found == [dict(zip(("id", "text"), row, strict=True)) for row in rows]


def test_a_quoted_tsv_is_named(tmp_path, caplog):
    with pytest.raises(SourceError, match=r"a\.tsv: line 1: the column names are quoted; .*remedy: name .* \.csv"):
        read(tmp_path / "a.tsv", '"id"\t"text"\n"1"\t"a"\n')
    first, second, rejection = read(tmp_path / "a.tsv", 'id\ttext\n1\t"say ""no"" twice"\n2\t"two\nlines"\n')
    assert first.texts == ('"say ""no"" twice"',)
    assert (second.texts, rejection.record) == (('"two',), "line 4")
    assert "a.tsv: 1 rows, the first on line 2, hold a field like" in caplog.text and ".csv" in caplog.text


@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_a_csv_field_that_swallows_rows_is_refused_with_its_line(tmp_path, delimiter):
    message = (
        r'a\.csv: line 12: the field that begins with " swallows 20 lines that look like rows, such as .11.Case 11'
    )
    with pytest.raises(SourceError, match=message + ".*remedy: quote every field"):
        read(tmp_path / "a.csv", rows_with_open_quote(delimiter))


def test_an_open_quote_is_found_without_reading_the_whole_file(tmp_path):
    lines = [f"{number},Text of {number}\n" for number in range(10 * CHECK_EVERY)]
    lines[5] = '5,"Text of 5\n'
    stream = io.BytesIO("".join(["id,text\n", *lines]).encode())
    with pytest.raises(SourceError, match=r'line 7: the field that begins with " swallows 999 lines'):
        list(read_csv(stream, Wanted(("text",), "id")))  # of 9,994 lines


def test_quotation_marks_inside_fields_without_quotes_show_that_a_field_over_lines_is_no_field(tmp_path):
    """With one column, lines look like rows in any case."""
    data = 'text\nA 5" tube\n"Case one\nCase two\nCase three"\n'
    message = (
        r'line 3: a field that begins with " ends on a later line, but line 2 has a " inside a field without quotes'
    )
    with pytest.raises(SourceError, match=message):
        read(tmp_path / "a.csv", data, id_field="")
    with pytest.raises(SourceError, match=r"line 2: .*, but line 5 has"):
        read(tmp_path / "a.csv", 'text\n"Case one\nCase two\nCase three"\nA 5" tube\n', id_field="")


@pytest.mark.parametrize("columns", [("id", "text"), ("text", "id"), ("id", "label", "text")])
@given(
    st.lists(
        st.lists(st.text("ab ,;\"'“.\n", max_size=12), min_size=1, max_size=6).map("\n".join), min_size=1, max_size=6
    )
)
@example([",\n,\n,\n"])
def test_a_csv_that_a_writer_quoted_is_never_refused(columns, texts):
    """Unless its text itself holds rows with the ids of the table, which these alphabets exclude."""
    rows = [{"id": f"d-{number}", "label": "x1", "text": f"t{text}"} for number, text in enumerate(texts)]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    found = [record for _, record in read_csv(io.BytesIO(out.getvalue().encode()), Wanted(("text",), "id"))]
    assert [(each["id"], each["text"]) for each in found] == [(row["id"], row["text"]) for row in rows]


def test_each_line_of_a_row_that_is_not_csv_is_rejected(tmp_path):
    """No row disappears in another one."""
    data = '"id","text"\n"1","open\n"2","second"\n"3","third"\n'
    documents = read(tmp_path / "a.csv", data)
    assert [each.record if isinstance(each, Rejection) else each.document_id for each in documents] == [
        "line 2",
        "line 3",
        "3",
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_recognized_from_the_header(tmp_path, delimiter):
    out = io.StringIO(newline="")
    rows = [(str(number), f"Fall {number}: a,b;c|d\te") for number in range(220)]
    csv.writer(out, delimiter=delimiter).writerows([("id", "text"), *rows])
    assert ids_and_texts(read(tmp_path / "a.csv", out.getvalue())) == rows


def test_a_delimiter_is_set_by_the_recipe(tmp_path):
    assert ids_and_texts(read(tmp_path / "a.csv", "id^text\n1^a,b\n", csv_delimiter="^")) == [("1", "a,b")]
    [document] = read(tmp_path / "a.csv", "id;text,n\n1;a,2\n", ("id;text",), "", csv_delimiter=",")
    assert document.texts == ("1;a",), "the recipe says so"


def test_columns_are_never_joined(tmp_path):
    message = (
        r"no column id;text; the columns are id, text; remedy: .* not separated by semicolon, set corpus.csv_delim"
    )
    with pytest.raises(SourceError, match=message):
        read(tmp_path / "a.csv", "id;text\n1;a\n", ("id;text",), "")
    with pytest.raises(SourceError, match=r"no column text; the columns are id\^text; .*set corpus.csv_delimiter"):
        read(tmp_path / "a.csv", "id^text\n1^a\n", ("text",), "")


@given(st.text('",;\t|\r\naé\ufeff01', max_size=60))
def test_any_text_gives_records_or_a_source_error_and_no_line_is_lost(data):
    data = "id,text\n1,a\n" + data
    for reader in (read_csv, read_tsv):
        try:
            records = list(reader(io.BytesIO(data.encode()), Wanted(("a" if reader is read_tsv else "text",))))
        except SourceError as error:
            assert "remedy" in str(error)
            continue
        numbers = [number for number, _ in records]
        assert numbers == sorted(set(numbers))
        assert all(isinstance(record, (dict, Fault)) for _, record in records)
