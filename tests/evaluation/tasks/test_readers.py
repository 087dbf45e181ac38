"""Data files of all kinds, valid and damaged."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.evaluation.tasks.readers import (
    HOC_HEADER,
    MAX_SENTENCE_WORDS,
    Example,
    Sentence,
    Text,
    read_split,
    read_task,
    size,
)
from bert_pipeline.evaluation.tasks.task import SPLITS, Task, TaskError

CLASSES = ("none", "up", "down")


def task(kind, **fields) -> Task:
    fields = {"ner": {}, "pico": {"labels": ("PAR", "INT")}, "similarity": {"score_range": (0.0, 4.0)}}.get(
        kind, {"labels": CLASSES}
    ) | fields
    return Task(name="mine", title="Mine", kind=kind, version="1", terms="none", folder="mine", **fields)


TASKS = {
    "ner": task("ner"),
    "typed ner": task("ner", labels=("Drug", "Gene")),
    "pico": task("pico"),
    "relation": task("relation", unscored_labels=("none",), label_aliases={"nil": "none"}),
    "similarity": task("similarity", header=("pair_id", "sent1", "sent2", "score")),
    "documents": task("documents"),
    "documents of sentences": task("documents", header=HOC_HEADER),
    "qa": task("qa"),
    "qa in json": task("qa", splits={split: {"file": f"{split}.json"} for split in SPLITS}),
}


def written(what: Task, examples: list[Example]) -> str:
    """The content of a split's file, in the formats of the readers' docstring."""
    if what.splits.train.file.endswith(".json"):
        return json.dumps(
            {
                text.id: {"QUESTION": text.parts[0], "CONTEXTS": [text.parts[1]], "final_decision": text.label}
                for text in examples
            },
            indent=1,
        )
    lines = ["\t".join(what.header)] if what.header else []
    for one in examples:
        if isinstance(one, Sentence):
            lines += [f"{token}\t{tag}" for token, tag in zip(one.tokens, one.tags, strict=True)] + [""]
        elif what.header == HOC_HEADER:
            flags = ",".join(f"{number}_{int(label in one.label)}" for number, label in enumerate(what.labels))
            none = ",".join(f"{number}_0" for number in range(len(what.labels)))
            first, *rest = one.parts[0].split(" ")
            lines += [f"{none}\t{word}\t{one.id}_s{number}" for number, word in enumerate(rest, start=1)]
            lines.append(f"{flags}\t{first}\t{one.id}_s0")  # a document's order is that of the numbers
        else:
            label = ",".join(sorted(one.label)) if isinstance(one.label, frozenset) else one.label
            lines.append("\t".join([one.id, *one.parts, str(label)]))
    return "".join(f"{line}\n" for line in lines)


words = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\ufeff "), min_size=1).filter(str.strip)
sentences = st.lists(words, min_size=1, max_size=4).map(" ".join)
scores = st.floats(0, 4)


@st.composite
def tagged(draw, what: Task):
    if what.kind == "pico":
        tags = draw(st.lists(st.sampled_from(what.tags), min_size=1, max_size=8))
    else:
        begins = [tag for tag in what.tags if tag[0] == "B"]
        entity = st.tuples(st.sampled_from(begins), st.integers(0, 2)).map(
            lambda made: [made[0]] + [f"I{made[0][1:]}"] * made[1]
        )
        runs = draw(st.lists(entity | st.just(["O"]), min_size=1, max_size=5))
        tags = [tag for run in runs for tag in run]
    tokens = draw(
        st.lists(words.filter(lambda word: not word.startswith("-DOCSTART-")), min_size=len(tags), max_size=len(tags))
    )
    return tuple(tokens), tuple(tags)


@st.composite
def splits(draw, what: Task) -> list[Example]:
    """A valid split: at least one example that can be scored, and two classes in train."""
    if what.kind in ("ner", "pico"):
        made = [(("first",), (what.tags[1],)), *draw(st.lists(tagged(what), max_size=5))]
        return [Sentence(str(number), *one) for number, one in enumerate(made, start=1)]
    label = {
        "similarity": scores,
        "documents": st.frozensets(st.sampled_from(CLASSES)),
    }.get(what.kind, st.sampled_from(CLASSES))
    first = {"similarity": [0.0, 4.0], "documents": [frozenset(CLASSES[:2])]}.get(what.kind, ["up", "none"])
    labels = [*first, *draw(st.lists(label, max_size=5))]
    names = draw(st.lists(words, min_size=len(labels), max_size=len(labels), unique=True))
    num_parts = 2 if what.kind in ("similarity", "qa") else 1
    parts = st.lists(sentences, min_size=num_parts, max_size=num_parts).map(tuple)
    return [Text(name, draw(parts), label) for name, label in zip(names, labels, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("splits")


@pytest.mark.parametrize("name", TASKS)
@given(data=st.data(), crlf=st.booleans(), mark=st.booleans())
def test_written_files_are_read_back(folder, name, data, crlf, mark):
    what = TASKS[name]
    examples = data.draw(splits(what))
    content = written(what, examples)
    path = folder / what.splits.dev.file
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + (content.replace("\n", "\r\n") if crlf else content).encode())
    assert read_split(what, path) == examples


@pytest.mark.parametrize("name", TASKS)
@given(data=st.data())
def test_damaged_files_raise_only_task_errors(folder, name, data):
    what = TASKS[name]
    content = written(what, data.draw(splits(what))).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start, end = sorted(data.draw(st.lists(st.integers(0, len(content)), min_size=2, max_size=2)))
        content = content[:start] + data.draw(st.binary(max_size=5)) + content[end:]
    path = folder / what.splits.dev.file
    path.write_bytes(content)
    try:
        examples = read_split(what, path)
    except TaskError as error:
        assert str(error).startswith(f"{path}:") and "remedy" in str(error)
    else:
        assert examples and size(what, examples) > 0


def read(what: Task, path: Path, content: bytes) -> list[Example]:
    path.write_bytes(content)
    return read_split(what, path)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "dev.tsv"


def test_blank_lines_may_repeat_and_a_byte_order_mark_is_no_token(path):
    content = "\ufeffaspirin\tB\n\n \n\nhelps\tO\n\n\n".encode()
    assert read(TASKS["ner"], path, content) == [Sentence("1", ("aspirin",), ("B",)), Sentence("2", ("helps",), ("O",))]


def test_docstart_lines_name_documents_and_are_no_tokens(path):
    """EBM-PICO has no blank line before some; JNLPBA's train holds one document twice."""
    content = b"-DOCSTART- (12)\n\na\tB\n\nb\tO\n-DOCSTART- 7\n\nc\tI\n\n-DOCSTART- 12\n\nd\tO\n\n".replace(b"I", b"B")
    found = read(TASKS["ner"], path, content)
    assert [sentence.id for sentence in found] == ["12:1", "12:2", "7:1", "12:3"]
    assert [sentence.tokens for sentence in found] == [("a",), ("b",), ("c",), ("d",)]


def test_an_entity_does_not_continue_across_a_docstart_line(path):
    with pytest.raises(TaskError, match=r"dev\.tsv:3: tag I of 'b' follows O, not B or I"):
        read(TASKS["ner"], path, b"a\tB\n-DOCSTART- 2\nb\tI\n\n")


def test_an_alias_is_read_as_its_class_and_an_empty_cell_as_no_class(path):
    assert [text.label for text in read(TASKS["relation"], path, b"1\tx\tnil\n2\ty\tup\n")] == ["none", "up"]
    found = read(TASKS["documents"], path, b"1\tx\t\n2\ty\tup,down\n")
    assert [text.label for text in found] == [frozenset(), frozenset({"up", "down"})]


def test_hoc_documents_are_their_sentences_and_the_union_of_their_classes(path):
    rows = [
        "labels\tsentence\tindex",
        "0_0,1_1,2_0\tOne .\t9_s0",
        "0_1,1_0,2_0\tTwo .\t9_s1",
        "0_0,1_0,2_0\tEmpty\t8_s0",
    ]
    assert read(TASKS["documents of sentences"], path, "\n".join(rows).encode()) == [
        Text("9", ("One . Two .",), frozenset({"none", "up"})),
        Text("8", ("Empty",), frozenset()),
    ]


def test_the_contexts_of_a_question_are_joined(tmp_path):
    record = {
        "QUESTION": "Does it?",
        "CONTEXTS": ["One.", "Two."],
        "final_decision": "up",
        "YEAR": "1999",
        "MESHES": [],
    }
    found = read(TASKS["qa in json"], tmp_path / "dev.json", json.dumps({"12": record}).encode())
    assert found == [Text("12", ("Does it?", "One. Two."), "up")]


NER, TYPED, PICO, RELATION = (TASKS[name] for name in ("ner", "typed ner", "pico", "relation"))
SIMILARITY, DOCUMENTS, HOC = (TASKS[name] for name in ("similarity", "documents", "documents of sentences"))
PAIRS, SENTENCES = b"pair_id\tsent1\tsent2\tscore\n", b"labels\tsentence\tindex\n"


@pytest.mark.parametrize(
    ("what", "content", "line", "value", "remedy"),
    [
        (NER, b"aspirin\tB\nacid\tI-Chemical\n", 2, "'I-Chemical'", "one of B, I, O"),
        (NER, b"aspirin\tB\nacid\n", 2, "'acid'", "one tab"),
        (NER, b"aspirin\tNN\tB\n", 1, r"'aspirin\tNN\tB'", "one tab"),
        (NER, b"\tB\n", 1, "", "one tab"),
        (NER, b"of\tO\nacid\tI\n", 2, "'acid'", "first word of an entity with B"),
        (NER, b"acid\tB\n\nacid\tI\n", 3, "'acid'", "first word of an entity with B"),
        (
            TYPED,
            b"acid\tB-Drug\nrain\tI-Gene\n",
            2,
            "follows B-Drug, not B-Gene",
            "first word of an entity with B-Gene",
        ),
        (TYPED, b"acid\tB\n", 1, "'B'", "B-Drug, B-Gene, I-Drug, I-Gene, O"),
        (PICO, b"men\tB-PAR\n", 1, "'B-PAR'", "I-INT, I-PAR, O"),
        (NER, b"aspirin\tB\nna\xefve\tO\n", 2, "0xef", "convert the file to UTF-8"),
        (NER, b"\xef\xbb\xbfaspirin\tB\n\xff\tO\n", 2, "0xff", "convert the file to UTF-8"),
        (NER, b"a\tB\n" * (MAX_SENTENCE_WORDS + 1), MAX_SENTENCE_WORDS + 1, "line 1", "blank line"),
        (NER, b"a\tB\n.\tO\nb\tB\n.\tO\n", 4, "has no blank line", "blank line after each sentence"),
        (RELATION, b"1\ta\tup\n2\tb\tsideways\n", 2, "'sideways'", "one of none, up, down"),
        (RELATION, b"1\ta\tup\n2\tb \tup \n", 2, "'up '", "one of none, up, down"),
        (RELATION, b"1\ta\tup\n\n2\tb\n", 3, "2 column(s)", "3 (id, text, class)"),
        (RELATION, b"1\ta\tb\tup\n", 1, "4 column(s)", "3 (id, text, class)"),
        (RELATION, b"1\t \tup\n", 1, "the text of", "fill it"),
        (RELATION, b"\ta\tup\n", 1, "the id of", "fill it"),
        (RELATION, b"1\ta\tup\n2\tb\tup\n1\tc\tdown\n", 3, "id '1' is already used in line 1", "make it unique"),
        (SIMILARITY, b"1\ta\tb\t3.0\n", 1, "the header is", "pair_id TAB sent1 TAB sent2 TAB score"),
        (SIMILARITY, PAIRS + b"1\ta\tb\thigh\n", 2, "'high'", "0 to 4"),
        (SIMILARITY, PAIRS + b"1\ta\tb\t4.2\n", 2, "4.2", "0 to 4"),
        (SIMILARITY, PAIRS + b"1\ta\tb\t-1\n", 2, "-1", "0 to 4"),
        (SIMILARITY, PAIRS + b"1\ta\tb\tnan\n", 2, "nan", "0 to 4"),
        (SIMILARITY, PAIRS + b"1\ta\t\t2.0\n", 2, "the sent2 of", "fill it"),
        (DOCUMENTS, b"1\ta\tup,out\n", 1, "'out'", "one of none, up, down"),
        (HOC, SENTENCES + b"0_0,1_1\ta\t9_s0\n", 2, "'0_0,1_1'", "to 2_1"),
        (HOC, SENTENCES + b"0_0,1_1,2_2\ta\t9_s0\n", 2, "'0_0,1_1,2_2'", "to 2_1"),
        (HOC, SENTENCES + b"0_0,1_1,2_0\ta\t9\n", 2, "'9'", "<document>_s<number>"),
        (
            HOC,
            SENTENCES + b"0_0,1_1,2_0\ta\t9_s0\n0_0,1_1,2_0\tb\t8_s0\n0_0,1_1,2_0\tc\t9_s1\n",
            4,
            "9_s1 is separated",
            "keep the sentences of a document together",
        ),
        (
            HOC,
            SENTENCES + b"0_0,1_1,2_0\ta\t9_s0\n0_0,1_1,2_0\tb\t9_s0\n",
            3,
            "index '9_s0' is already used in line 2",
            "unique",
        ),
    ],
)
def test_a_broken_line_is_named_with_its_value_and_a_remedy(path, what, content, line, value, remedy):
    with pytest.raises(TaskError) as error:
        read(what, path, content)
    message = str(error.value)
    assert message.startswith(f"{path}:{line}: ")
    assert value.replace("\t", r"\t") in message
    assert remedy in message.partition("remedy: ")[2]


WHOLE = '{"QUESTION": "q", "CONTEXTS": ["c"], "final_decision": "up"}'


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (f'{{"1": {WHOLE},\n"2": }}', 2, "not JSON"),
        ("[" * 100_000, 1, "not JSON"),
        (f"[{WHOLE}]", 1, "not an object of questions"),
        (f'{{"1": {WHOLE},\n"2": {WHOLE},\n"1": {WHOLE}}}', 3, "id '1' is empty, duplicate"),
        (f'{{"": {WHOLE}}}', 1, "id '' is empty"),
        (f'{{"1\\t2": {WHOLE}}}', 1, "tab or line break"),
        (f'{{"1": {WHOLE},\n"2": {WHOLE.replace("QUESTION", "Q")}}}', 2, "question '2' is incomplete"),
        (f'{{"1": {WHOLE},\n"2": {WHOLE.replace("[", "").replace("]", "")}}}', 2, "question '2' is incomplete"),
        (f'{{"1": {WHOLE.replace(chr(34) + "c", chr(34) + " ")}}}', 1, "question '1' is incomplete"),
        ('{"1": {"QUESTION": "q", "CONTEXTS": [], "final_decision": "up"}}', 1, "question '1' is incomplete"),
        ('{"1": [["QUESTION", "q"]]}', 1, "question '1' is incomplete"),
        (f'{{"1": {WHOLE},\n"2": {WHOLE.replace("up", "perhaps")}}}', 2, "label 'perhaps' is unknown"),
    ],
)
def test_a_broken_question_is_named_with_its_line(tmp_path, content, line, message):
    path = tmp_path / "dev.json"
    with pytest.raises(TaskError) as error:
        read(TASKS["qa in json"], path, content.encode())
    assert str(error.value).startswith(f"{path}:{line}: ") and message in str(error.value)
    assert "remedy: " in str(error.value)


@pytest.mark.parametrize(
    ("what", "content", "message"),
    [
        (NER, b"", "0 examples and no entity"),
        (NER, b"\n\n", "0 examples and no entity"),
        (NER, b"no\tO\nchemicals\tO\n\n", "1 examples and no entity"),
        (PICO, b"no\tO\n\n", "no label word"),
        (RELATION, b"1\ta\tnone\n2\tb\tnil\n", "2 examples and no scored class"),
        (SIMILARITY, PAIRS + b"1\ta\tb\t3\n2\ta\tc\t3.0\n", "2 examples and no two different scores"),
        (DOCUMENTS, b"1\ta\t\n", "examples and no class"),
        (TASKS["qa"], b"\n", "0 examples and no question"),
    ],
)
def test_a_split_with_nothing_to_score_is_refused(path, what, content, message):
    with pytest.raises(TaskError) as error:
        read(what, path, content)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value) and "remedy" in str(error.value)


def write_splits(folder: Path, **contents: str) -> Path:
    for split in SPLITS:
        (folder / f"{split}.tsv").write_text(contents[split])
    return folder


def test_a_training_split_of_one_class_is_refused(tmp_path):
    write_splits(tmp_path, train="1\ta\tup\n2\tb\tup\n", dev="1\tc\tup\n", test="1\td\tup\n")
    with pytest.raises(TaskError, match=r"train\.tsv: all 2 examples have the class 'up', so there is nothing"):
        read_task(RELATION, tmp_path)


def test_the_sizes_of_splits_are_counted(tmp_path):
    write_splits(
        tmp_path,
        train="a\tB\nb\tI\nc\tB\n\nd\tO\n\n",
        dev="a\tB\nb\tI\nc\tB\n\nd\tB\n\n",
        test="e\tB\n\n",
    )
    data = read_task(NER, tmp_path)
    digest = sha256((tmp_path / "dev.tsv").read_bytes()).hexdigest()
    # The words make an example the same, whatever its tags.
    assert data.files["dev"] == {"sha256": digest, "size": 3, "examples": 2, "also_in_train": 2}
    assert data.files["test"]["also_in_train"] == 0 and data.files["train"]["size"] == 2
    assert size(PICO, [Sentence("1", ("a", "b", "c"), ("I-PAR", "O", "I-INT"))]) == 2


def test_an_example_that_is_also_in_train_is_counted_not_refused(tmp_path):
    write_splits(tmp_path, train="1\ta\tup\n2\tb\tdown\n", dev="1\tb\tup\n2\tc\tup\n", test="1\td\tup\n")
    data = read_task(RELATION, tmp_path)
    assert data.files["dev"]["also_in_train"] == 1
    assert data.remarks == ["1 of 2 examples of dev are also in train"]


def test_other_data_is_refused_with_both_values_unless_allowed(tmp_path):
    write_splits(tmp_path, train="a\tB\n\n", dev="b\tB\n\n", test="c\tB\n\n")
    digest = sha256(b"b\tB\n\n").hexdigest()
    stated = {"train": {"file": "train.tsv", "size": 1}, "dev": {"file": "dev.tsv", "size": 1, "sha256": digest}}
    assert read_task(task("ner", splits=stated), tmp_path).files["dev"]["sha256"] == digest
    other_size = task("ner", splits=stated | {"test": {"file": "test.tsv", "size": 5385}})
    with pytest.raises(TaskError, match=r"test\.tsv: 1 entities, but mine's test has 5,385: .*remedy: .*other_data"):
        read_task(other_size, tmp_path)
    other_bytes = task("ner", splits={"dev": {"file": "dev.tsv", "sha256": "0" * 64}})
    with pytest.raises(TaskError, match=rf"dev\.tsv: sha256 {digest}, but mine's dev has 0000.*remedy"):
        read_task(other_bytes, tmp_path)
    for what, message in ((other_size, "test.tsv: 1 entities, but"), (other_bytes, "dev.tsv: sha256")):
        data = read_task(what, tmp_path, other_data=True)
        assert data.splits["test"] == [Sentence("1", ("c",), ("B",))]
        [remark] = data.remarks
        assert message in remark and remark.endswith("scores are not comparable with published ones")
