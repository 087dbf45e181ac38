from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from bert_pipeline.data.tokenizer import counts as wordcounts
from bert_pipeline.data.tokenizer.counts import Sample, count_corpus, count_words
from bert_pipeline.formats.corpus import CorpusShard
from bert_pipeline.formats.tables import shard_paths

EVERYTHING = Sample(seed=1, share=1.0)


def bert_tokenizer(lowercase=True):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def counted_by_tokenizers(sentences, lowercase=True):
    tokenizer = bert_tokenizer(lowercase)
    words = Counter()
    for sentence in sentences:
        normal = tokenizer.normalizer.normalize_str(sentence)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    return words


letters = st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \t\n\u00a0\u2028\u0301\u200b\x00İΣσς[]#-ß中aB")


@settings(max_examples=300)
@given(texts=st.lists(st.text(letters, max_size=40), max_size=6), lowercase=st.booleans())
def test_words_equal_those_of_the_trainer_in_tokenizers(texts, lowercase):
    batches = [pa.array(texts[:2], pa.string()), pa.array(texts[2:], pa.string())]
    assert count_words(bert_tokenizer(lowercase), batches) == counted_by_tokenizers(texts, lowercase)


@pytest.fixture
def shards(tmp_path):
    """Ten shards of 30 documents, and all their words."""
    counts = Counter()
    for shard in range(10):
        documents = [[f"word{n % 7} {shard}", f"β{n * shard % 11} word{n}"] for n in range(30)]
        columns = {"document_id": [f"{shard}-{n}" for n in range(30)], "sentences": documents}
        pq.write_table(pa.table(columns), tmp_path / f"shard-{shard:05d}.parquet")
        counts.update(counted_by_tokenizers(sentence for document in documents for sentence in document))
    return [CorpusShard(path, "", 30) for path in shard_paths(tmp_path, "parquet")], counts


def as_counter(counted):
    return Counter(dict(zip(counted.words.to_pylist(), counted.counts.tolist(), strict=True)))


def test_counts_of_shards_add_up_over_several_rounds_of_merging(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(wordcounts, "FAN_IN", 4)  # ten files, three, one
    paths, counts = shards
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "2")
    counted = count_corpus(bert_tokenizer(), paths, EVERYTHING, tmp_path)
    assert as_counter(counted) == counts
    assert counted.words.to_pylist() == sorted(counts)
    assert (counted.num_documents, counted.num_distinct, counted.num_cut) == (300, len(counts), 0)
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "1")
    backwards = count_corpus(bert_tokenizer(), paths[::-1], EVERYTHING, tmp_path)
    assert backwards.words.equals(counted.words) and (backwards.counts == counted.counts).all()


@settings(max_examples=100)
@given(
    files=st.lists(
        st.dictionaries(st.text("aβ中b", max_size=3), st.integers(1, 2**40), max_size=30), min_size=1, max_size=5
    ),
    size=st.integers(1, 7),
)
def test_merging_reads_files_piece_by_piece(files, size, tmp_path_factory):
    folder = tmp_path_factory.mktemp("counts")
    paths = [folder / f"{n}.parquet" for n in range(len(files))]
    for path, counts in zip(paths, files, strict=True):
        wordcounts._write(path, [wordcounts.as_table(Counter(counts))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wordcounts, "BATCH_WORDS", size)
        tables = list(wordcounts._merged(paths))
    assert all(len(table) <= size * len(files) for table in tables), "no more than what is held"
    words = [word for table in tables for word in table["word"].to_pylist()]
    assert words == sorted({word for counts in files for word in counts})
    merged = dict(zip(words, (count for table in tables for count in table["count"].to_pylist()), strict=True))
    assert merged == {word: sum(counts.get(word, 0) for counts in files) for word in words}


@pytest.mark.parametrize("kept", [1, 5, 12])
def test_the_rarest_words_beyond_the_limit_are_cut_and_counted(kept, monkeypatch):
    monkeypatch.setattr(wordcounts, "KEPT_WORDS", kept)
    counts = Counter({f"word{n}": 1 + n * n % 7 for n in range(30)})
    whole = wordcounts.as_table(counts)
    counted = wordcounts._most_frequent((whole.slice(n, 4) for n in range(0, 30, 4)), num_documents=3)
    most_frequent = sorted(counts, key=lambda word: (-counts[word], word))[:kept]
    assert as_counter(counted) == {word: counts[word] for word in most_frequent}
    assert counted.words.to_pylist() == sorted(most_frequent)
    assert counted.num_cut == counts.total() - sum(counts[word] for word in most_frequent)
    assert (counted.num_distinct, counted.num_documents) == (30, 3)
    assert as_counter(wordcounts._most_frequent([], num_documents=0)) == {}


def test_a_sample_decides_each_document_independently(shards, tmp_path):
    shards, counts = shards
    sample = Sample(seed=7, share=0.3)
    chosen = {f"{shard}-{n}" for shard in range(10) for n in range(30) if sample.holds(f"{shard}-{n}")}
    assert 60 < len(chosen) < 120
    counted = count_corpus(bert_tokenizer(), shards, sample, tmp_path)
    assert counted.num_documents == len(chosen)
    expected = Counter()
    for shard in shards:
        for row in pq.read_table(shard.path).to_pylist():
            if row["document_id"] in chosen:
                expected.update(counted_by_tokenizers(row["sentences"]))
    assert as_counter(counted) == expected < counts


def test_a_larger_sample_contains_the_smaller_one_and_another_seed_differs():
    names = [f"document {n}" for n in range(20_000)]
    held = {
        (seed, share): {n for n in names if Sample(seed, share).holds(n)} for seed in (1, 2) for share in (0.1, 0.2, 1)
    }
    assert held[1, 0.1] < held[1, 0.2] < held[1, 1] == set(names)
    assert abs(len(held[1, 0.1]) - 2_000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    both = len(held[1, 0.1] & held[2, 0.1])  # as of independent draws
    assert abs(both - 200) < 5 * (20_000 * 0.01 * 0.99) ** 0.5
