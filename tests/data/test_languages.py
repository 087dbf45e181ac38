"""Chinese text through the data stages, with its sentences split and unsplit, and the gates that tell the two apart."""

import random

import pyarrow as pa

from bert_pipeline.formats.corpus import corpus_shards
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.lineage import make_stage
from bert_pipeline.recipe import Recipe
from orchestration.checks import MAX_FORCED_FRACTION, check_results

TEXT = "患者因头痛三天入院。服用布洛芬后症状缓解！"


def build(folder, splitter):
    rng = random.Random(1)
    folder.mkdir()
    characters = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种"
    drugs = ["".join(rng.choices(["ka", "lo", "mi", "ne", "ster", "ol"], k=3)) for _ in range(200)]
    sentences = [
        "".join(rng.choices(characters, k=rng.randint(8, 20))) + rng.choice(drugs) + rng.choice("。！？")
        for _ in range(1_000)
    ]
    documents = ["".join([TEXT, *rng.sample(sentences, 9)]) for _ in range(200)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    recipe = Recipe.model_validate_json(f"""{{
        "name": "chinese",
        "corpus": {{"path": "{folder}/text.txt", "heldout_fraction": 0.1, "sentence_splitter": "{splitter}"}},
        "tokenizer": {{"vocab_size": 270}},
        "nsp": {{"dupe_factor": 1}},
        "pretrain": {{"phases": [{{"max_seq_length": 64, "num_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0}}]}}
    }}""")
    made = {}
    for kind in ("raw_corpus", "tokenizer", "nsp_dataset"):
        made[kind] = make_stage(kind, recipe, made, folder / kind)
    return made, {gate.check_name for each in made.values() for gate in check_results(each, recipe) if not gate.passed}


def test_chinese_sentences_are_split_and_give_ordinary_pairs(tmp_path, in_this_process):
    made, failed = build(tmp_path / "split", "segtok")
    documents = pa.concat_tables([shard.read("sentences") for shard in corpus_shards(made["raw_corpus"].path, "train")])
    first, second, *others = documents["sentences"][0].as_py()
    assert first + second == TEXT and len(others) == 9
    assert made["nsp_dataset"].facts["len_64"]["forced_random_fraction"] < 0.3 < MAX_FORCED_FRACTION
    assert failed == set()
    tokenizer = read_tokenizer(made["tokenizer"].path)
    assert tokenizer.decode(tokenizer.encode(TEXT).ids).replace(" ", "") == TEXT


def test_the_gates_fail_if_each_document_is_one_sentence(tmp_path, in_this_process):
    made, failed = build(tmp_path / "unsplit", "lines")
    facts = made["nsp_dataset"].facts["len_64"]
    assert facts["forced_random_fraction"] == 1 and facts["free_random_fraction"] == 0
    assert failed == {"few_pairs_forced", "few_pairs_truncated"}
