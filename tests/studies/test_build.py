"""The artifact of a study: what it needs, its numbers and its page."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from studies.evaluated import build, build_all

from bert_pipeline.cli import main
from bert_pipeline.experiments import expand, find_study
from bert_pipeline.lineage import find_artifacts
from bert_pipeline.stages import NotBuilt
from bert_pipeline.studies.build import make_study, standings_of
from bert_pipeline.studies.evidence import StudyIncomplete

STUDY = """
question = "Does <it> help?"
base = "tiny"
equal = "steps"
reference = "plain"
pretraining_seeds = [1, 2, 3]
finetuning_seeds = [1, 2]

[[arms]]
name = "plain"
description = "As published"

[[arms]]
name = "better"
description = "With | it"
[arms.changes]
pretrain.adam_beta2 = 0.98

[[arms]]
name = "same"
description = "With something else"
exempt = "It is on trial."
[arms.changes]
pretrain.phases.0.num_steps = 50
"""
TASK = 'title = "Drugs"\nkind = "ner"\nversion = "1"\nterms = "none"\nfolder = "drugs"\n'
TINY = """
corpus = { source = "sample", sample_documents = 200, heldout_fraction = 0.1 }
tokenizer = { vocab_size = 600 }
[[pretrain.phases]]
max_seq_length = 64
num_steps = 20
global_batch_size = 16
learning_rate = 5e-3
warmup_steps = 2
[[evaluation.tasks]]
name = "drugs"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home whose store has all artifacts of the study `mine`."""
    root = tmp_path_factory.mktemp("studies")
    (root / "mine.toml").write_text(STUDY)
    for folder in ("recipes", "tasks", "drugs"):
        (root / folder).mkdir()
    for task in ("drugs", "genes"):
        (root / "tasks" / f"{task}.toml").write_text(TASK)
    for split in ("train", "dev", "test"):
        (root / "drugs" / f"{split}.tsv").write_text("aspirin\tB\nhelped\tO\n\n")
    (root / "recipes" / "tiny.toml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        folders = {"STUDIES": ".", "RECIPES": "recipes", "TASKS": "tasks", "DATA": ".", "HOME": "home"}
        for name, folder in folders.items():
            patch.setenv(f"BERT_PIPELINE_{name}", str(root / folder))
        build_all("mine", root / "home" / "artifacts", {"plain": 0.85, "better": 0.93, "same": 0.855}, held=0.02)
        yield root / "home"


@pytest.fixture(scope="module")
def made(home):
    return make_study("mine", home / "artifacts")


def test_a_clear_difference_is_shown_and_a_small_one_is_not(made):
    standings = standings_of(made.facts)["drugs"]
    assert list(standings) == ["plain", "better", "same"] and standings["plain"].to_reference is None
    better, same = standings["better"].to_reference, standings["same"].to_reference
    assert better.shown and better.low > 0 and better.p_value < better.corrected_p_value < 0.05
    assert not same.shown and same.corrected_p_value > 0.05
    assert standings["better"].pretraining_sd > 0 and standings["better"].finetuning_sd > 0
    assert made.facts["shown"] == {"drugs": ["better"]}
    assert made.facts["spent"]["plain"] == {"steps": 100, "tokens": 60_000, "minutes": 10}
    losses = json.loads((made.path / "results.json").read_text())["losses"]
    assert losses["plain"][0]["steps"] == [0, 50, 100] and losses["plain"][0]["losses"][0] == 9.0, "per word"


def test_the_page_answers_and_says_what_does_not_follow(made):
    answer, limits = made.facts["answer"], " ".join(made.facts["limits"])
    assert re.fullmatch(
        r"better scores \d\d\.\d\d %: \+\d+\.\d\d points from the reference .* better than the reference\.", answer[1]
    )
    assert answer[2].endswith("No difference is shown. It does not follow the rule of equal steps.")
    for said in (
        "Each arm was pretrained with 3 seeds. The intervals are too narrow for so few",
        "the arms are not shown to be equal",
        "There is one task, drugs. Other tasks may order",
        "same does not follow the rule of equal steps: It is on trial.",
        "The corpora hold test examples of drugs: 2.0% (plain), 2.0% (better), 2.0% (same).",
        "The arms were compared at the end of one schedule",
        "No model was fine-tuned from random weights",
    ):
        assert said in limits
    text = (made.path / "study.md").read_text()
    for sentence in (*answer, *made.facts["limits"]):
        assert sentence[:30] in text
    for file in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (made.path / file).is_file()


def test_the_page_is_one_file_and_escapes_what_it_shows(made):
    page = (made.path / "study.html").read_text()

    class Links(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attrs):
            assert tag not in ("script", "link", "iframe", "it")
            self.found += [value for name, value in attrs if name in ("src", "href")]

    links = Links()
    links.feed(page)
    assert len(links.found) == 2 and all(each.startswith("data:image/png;base64,") for each in links.found)
    assert "Does &lt;it&gt; help?" in page and "pretrain.adam_beta2 = 0.98" in page


def test_the_same_evaluations_give_the_same_artifact(home, made):
    again = make_study("mine", home / "artifacts")
    assert again.path == made.path and again.record["made"] == made.record["made"]


def test_the_command_prints_the_table(made, capsys):
    assert main(["study", "mine"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^better +\d\d\.\d\d .* yes$", out, re.MULTILINE) and f"page: {made.path}/study.html" in out
    assert main(["study", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shown"] == {"drugs": ["better"]}


def test_a_study_can_be_inspected_and_sent_to_another_machine(made, tmp_path, monkeypatch, capsys):
    assert main(["inspect", str(made.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["reference"] == "plain"
    (tmp_path / "remote").mkdir()
    monkeypatch.setenv("BERT_PIPELINE_REMOTE", f"file://{tmp_path}/remote")
    assert main(["push", str(made.path)]) == 0
    assert main(["pull", "study", made.fingerprint, "--out", str(tmp_path / "here")]) == 0
    assert (tmp_path / "here" / "study.html").read_bytes() == (made.path / "study.html").read_bytes()


def test_several_tasks_are_answered_by_their_mean(home, tmp_path, monkeypatch):
    tasks = '[[tasks]]\nname = "drugs"\n[[tasks]]\nname = "genes"\n'
    (tmp_path / "two.toml").write_text(STUDY.replace("[[arms]]", f"{tasks}[[arms]]", 1))
    monkeypatch.setenv("BERT_PIPELINE_STUDIES", str(tmp_path))
    build_all("two", home / "artifacts", {"plain": 0.85, "better": 0.93, "same": 0.855})
    facts = make_study("two", home / "artifacts").facts
    standings = standings_of(facts)
    assert list(standings) == ["mean over tasks", "drugs", "genes"]
    for arm, mean in standings["mean over tasks"].items():
        each = [standings[task][arm] for task in ("drugs", "genes")]
        assert mean.mean == pytest.approx((each[0].mean + each[1].mean) / 2)
        assert mean.high - mean.low < max(one.high - one.low for one in each)
    assert facts["answer"][0].endswith("% (the mean over tasks).")
    assert "not for the number of tasks" in " ".join(facts["limits"])


def test_the_page_shows_the_settings_tried_and_chosen_for_each_model(home, tmp_path, monkeypatch):
    tasks = '[[tasks]]\nname = "genes"\nlearning_rate = [1e-4, 3e-4]\nbatch_size = 8\nnum_epochs = 2\n'
    (tmp_path / "rates.toml").write_text(STUDY.replace("[[arms]]", f"{tasks}[[arms]]", 1))
    monkeypatch.setenv("BERT_PIPELINE_STUDIES", str(tmp_path))
    build_all("rates", home / "artifacts", {"plain": 0.85, "better": 0.93, "same": 0.855})
    made = make_study("rates", home / "artifacts")
    page = (made.path / "study.md").read_text()
    assert "| genes | tried | 0.0001, 0.0003 | 8 | 2 |" in page
    settings = json.loads((made.path / "results.json").read_text())["finetuning_settings"]["genes"]
    assert settings["tried"]["learning_rates"] == [1e-4, 3e-4]
    for arm in ("plain", "better", "same"):
        recipes = [recipe for key, recipe in expand(find_study("rates")).items() if key[0] == arm]
        found = [find_artifacts(["evaluation/genes"], each, home / "artifacts") for each in recipes]
        rates = [each["evaluation/genes"].facts["setting"]["learning_rate"] for each in found]
        assert settings[arm]["learning_rates"] == rates
        shown = rates if len(set(rates)) > 1 else rates[:1]
        assert f"| genes | {arm} | {', '.join(f'{rate:g}' for rate in shown)} | 8 | 2 |" in page


def test_missing_recipes_are_named(home, tmp_path, monkeypatch, capsys):
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path))
    recipes = expand(find_study("mine"))
    for key, kind in ((("better", 2), "evaluation/drugs"), (("same", 3), "pretrained_checkpoint")):
        shutil.rmtree(find_artifacts([kind], recipes[key], tmp_path / "artifacts")[kind].path)
    assert main(["study", "mine"]) == 1
    told = capsys.readouterr().err
    assert "2 of 9 recipes are not trained and evaluated yet: mine--better--seed2, mine--same--seed3" in told
    assert "remedy: bert-pipeline study mine --run" in told


def test_arms_share_what_agrees(home):
    """One corpus, tokenizer and dataset for all nine recipes; a checkpoint and an evaluation for each."""
    counts = {
        kind: len([path for path in (home / "artifacts" / kind).iterdir() if path.is_dir()])
        for kind in ("raw_corpus", "tokenizer", "masked_dataset", "pretrained_checkpoint", "evaluation/drugs")
    }
    assert counts == {
        "raw_corpus": 1,
        "tokenizer": 1,
        "masked_dataset": 1,
        "pretrained_checkpoint": 9,
        "evaluation/drugs": 9,
    }


def test_an_arm_whose_first_model_is_missing_is_missing(home, tmp_path, monkeypatch):
    (tmp_path / "more.toml").write_text(
        STUDY.replace('name = "same"', 'name = "same"\ncontinues = "plain"').replace("num_steps = 50", "num_steps = 20")
    )
    monkeypatch.setenv("BERT_PIPELINE_STUDIES", str(tmp_path))
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path))
    recipes = expand(find_study("more"))
    with pytest.raises(NotBuilt):
        build(recipes["same", 1], tmp_path / "artifacts", 0.9)
    with pytest.raises(StudyIncomplete) as error:
        make_study("more", tmp_path / "artifacts")
    assert error.value.missing == find_study("more").recipe_names
