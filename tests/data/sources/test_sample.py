"""The embedded sample: determined by its seed, coherent stories, annotation without leaks."""

import hashlib
import re
from pathlib import Path

import pytest

from bert_pipeline.data.sources.sample import documents as sample

SEED = 7
DOCUMENTS = list(sample.sample_documents(400, SEED))
STEMS = {row.stem: row for row in sample.CLASSES}
SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z])")

Sentence = list[tuple[str, str]]


def read_tsv(path: Path) -> list[Sentence]:
    blocks = path.read_text(encoding="utf-8").removesuffix("\n\n").split("\n\n")
    return [[(token, tag) for token, tag in (line.split("\t") for line in block.split("\n"))] for block in blocks]


def entities(sentence: Sentence) -> list[tuple[str, ...]]:
    found: list[list[str]] = []
    for token, tag in sentence:
        if tag == "B":
            found.append([token])
        elif tag == "I":
            found[-1].append(token)
    return [tuple(tokens) for tokens in found]


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> dict[str, list[Sentence]]:
    folder = tmp_path_factory.mktemp("ner")
    sample.write_sample_ner(folder, SEED)
    return {part: read_tsv(folder / f"{part}.tsv") for part in ("train", "dev", "test")}


def test_a_document_is_a_function_of_the_seed_and_its_number():
    assert list(sample.sample_documents(40, SEED)) == DOCUMENTS[:40], "a shorter sample is a prefix of a longer one"
    assert len({document_id for document_id, _ in DOCUMENTS}) == len(DOCUMENTS)
    other = dict(sample.sample_documents(40, SEED + 1))
    assert not set(other.values()) & {text for _, text in DOCUMENTS}


def test_the_bytes_of_the_sample_do_not_change(tmp_path):
    """Recipes name the sample only by its seed. If the digest changes, raise code_version in the stages reading it."""
    sample.write_sample_ner(tmp_path, SEED)
    digest = hashlib.sha256("\n".join(text for _, text in DOCUMENTS).encode())
    for part in ("train", "dev", "test"):
        digest.update((tmp_path / f"{part}.tsv").read_bytes())
    assert digest.hexdigest() == "69932c85c28c24d2310de341ec3af7380cb5cb04640a32d1ad16f19f766a8070"


def test_annotation_is_a_function_of_the_seed(tmp_path):
    for name, seed in (("a", SEED), ("b", SEED), ("c", SEED + 1)):
        sample.write_sample_ner(tmp_path / name, seed)
    for part in ("train.tsv", "dev.tsv", "test.tsv"):
        assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "b" / part).read_bytes()
        assert (tmp_path / "a" / part).read_bytes() != (tmp_path / "c" / part).read_bytes()


def test_documents_are_abstracts():
    lengths = [len(text.split()) for _, text in DOCUMENTS]
    assert 100 <= sum(lengths) / len(lengths) <= 150
    for document_id, text in DOCUMENTS:
        assert 4 <= len(SENTENCE_END.split(text)) <= 12, (document_id, text)
        assert not re.search(r"[{}|‹›]|\.\.|  |\s$", text), f"unfilled or untidy: {document_id}: {text}"
        assert re.fullmatch(r"[A-Z].*\.", text)


def test_a_document_covers_one_therapeutic_area():
    """All invented drug names, salts and metabolites belong to one area, whose diseases the text names."""
    mentions = re.compile(rf"\b\w{{4,}}({'|'.join(STEMS)})\b")
    named = 0
    for _, text in DOCUMENTS:
        areas = {STEMS[stem].area for stem in mentions.findall(re.sub("|".join(sample.PLAIN_CHEMICALS), "", text))}
        assert len(areas) <= 1, text
        for area in areas:
            named += 1
            assert any(disease in text.lower() for disease in sample.AREAS[area]["disease"].lower().split("; ")), text
    assert named > len(DOCUMENTS) / 2


def test_sentences_of_a_document_share_more_words_than_sentences_of_two():
    """The signal for next-sentence prediction: real pairs have more words in common than random ones."""
    first, second = zip(
        *((set(a.split()), set(b.split())) for _, text in DOCUMENTS for a, b in [SENTENCE_END.split(text)[1:3]]),
        strict=True,
    )
    common = {"the", "of", "and", "in", "was", "with", "to", "a", "by", "is", "The", "A"}
    real = [len(a & b - common) for a, b in zip(first, second, strict=True)]
    random = [len(a & b - common) for a, b in zip(first, second[1:] + second[:1], strict=True)]
    assert sum(real) > 3 * sum(random)


def test_ner_files_are_in_blurbs_format(task):
    for part, sentences in task.items():
        assert len(sentences) == sample.NER_SENTENCES[part]
        for sentence in sentences:
            assert sentence[-1][0] == "."
            assert all(re.fullmatch(r"[^\W_]+|[^\w\s]", token) for token, _ in sentence), sentence
            previous = "O"
            for _, tag in sentence:
                assert tag in ("B", "I", "O")
                assert not (tag == "I" and previous == "O"), f"I without B: {sentence}"
                previous = tag


def test_annotation_covers_the_chemicals_and_nothing_else(task):
    chemical_words = {word for name in sample.PLAIN_CHEMICALS for word in name.split()}
    for sentence in (sentence for sentences in task.values() for sentence in sentences):
        for token, tag in sentence:
            is_drug = re.fullmatch(rf"\w{{4,}}({'|'.join(STEMS)})", token.lower())
            if is_drug or token.lower() in chemical_words:
                assert tag != "O", (token, sentence)
        for entity in entities(sentence):
            assert not entity[0].endswith(("kinase", "synthase", "coccus", "scope")), entity


def test_names_in_the_test_set_are_new(task):
    words = {
        part: {
            token.lower() for s in sentences for e in entities(s) for token in e if re.fullmatch("[A-Za-z]{2,}", token)
        }
        for part, sentences in task.items()
    }
    assert not words["test"] & (words["train"] | words["dev"])
    assert not words["dev"] & words["train"]
    assert len(words["test"]) > 200
    coined = re.compile(r"\w+(kinase|synthase|oxidase|ectin|bacter|coccus|monas|graph|scope)")
    seen = {token for part in ("train", "dev") for sentence in task[part] for token, _ in sentence}
    others = {token for sentence in task["test"] for token, tag in sentence if tag == "O" and coined.fullmatch(token)}
    assert len(others) > 30
    assert not others & seen, "if these were known, every unknown word would be a chemical"


def test_templates_of_the_test_set_are_new(task):
    """With any words in the slots: all sentences of the test, and no others, match a template of the test."""

    def slot(found: re.Match[str]) -> str:
        choices = found[1].split("|")
        return "\1" + "\2".join(choices) + "\3" if len(choices) > 1 else "\0"

    def pattern(template: str) -> str:
        while "{" in template:
            template = re.sub(r"\{([^{}]*)\}", slot, template)
        regex = re.escape(template.lower().replace(" ", "").removesuffix("."))
        return (
            regex.replace("\0", ".+").replace("\1", "(?:").replace("\2", "|").replace("\3", ")") + r"\.?"
        )  # i.v. may end it

    templates = [template for role in sample.SENTENCES for template in sample.ner_templates(role, "test")]
    of_the_test = re.compile("|".join(map(pattern, templates)))
    for part, sentences in task.items():
        for sentence in sentences:
            text = "".join(token for token, _ in sentence).lower()
            assert bool(of_the_test.fullmatch(text)) == (part == "test"), (part, text, of_the_test.fullmatch(text))


def test_names_of_the_test_set_occur_in_the_plain_text(task):
    """Pretraining helps in the task because it has read these names."""
    text = {
        word for _, document in sample.sample_documents(6000, SEED) for word in re.findall(r"\w{5,}", document.lower())
    }
    names = {token.lower() for s in task["test"] for e in entities(s) for token in e if len(token) >= 5}
    assert len(names - text) < 0.05 * len(names)
