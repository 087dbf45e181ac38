import json
from pathlib import Path

import pytest

from bert_pipeline.cli import main
from bert_pipeline.evaluation.finetuning.protocol import protocol
from bert_pipeline.evaluation.tasks.readers import read_task
from bert_pipeline.evaluation.tasks.task import (
    SPLITS,
    Task,
    TaskError,
    find_task,
    load_task,
    require_files,
    task_files,
    task_fingerprint,
    task_folder,
)
from bert_pipeline.recipe import TaskRecipe

BLURB = {
    "named entity recognition": ["BC2GM", "BC5CDR-chem", "BC5CDR-disease", "JNLPBA", "NCBI-disease"],
    "PICO": ["EBM-PICO"],
    "relation extraction": ["ChemProt", "DDI", "GAD"],
    "sentence similarity": ["BIOSSES"],
    "document classification": ["HoC"],
    "question answering": ["BioASQ", "PubMedQA"],
}
MEMBERS = [name for names in BLURB.values() for name in names]
# The last row of table 6 of Gu et al. 2021, and of table 7 of Yasunaga et al. 2022.
PUBLISHED_TOTALS = {
    "BERT-base uncased": 76.11,
    "BERT-base cased": 75.86,
    "RoBERTa-base": 76.46,
    "BioBERT": 80.34,
    "SciBERT uncased": 78.86,
    "SciBERT cased": 78.14,
    "ClinicalBERT": 77.29,
    "BlueBERT": 76.27,
    "PubMedBERT": 81.16,
    "BioLinkBERT-base": 83.39,
    "BioLinkBERT-large": 84.30,
}
MINE = """
title = "Findings"
kind = "relation"
version = "1"
terms = "internal"
folder = "findings"
labels = ["none", "confirms"]
"""


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """An empty folder in BERT_PIPELINE_TASKS."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.setenv("BERT_PIPELINE_TASKS", str(folder))
    return folder


def test_the_thirteen_tasks_of_blurb_are_there():
    tasks = {name: load_task(path) for name, path in task_files().items()}
    groups = {group: [name for name, task in tasks.items() if task.group == group] for group in BLURB}
    assert groups == BLURB
    assert [name for name, task in tasks.items() if task.group is None] == ["sample-chem"]
    for name in MEMBERS:
        task = tasks[name]
        assert task.folder == f"blurb/{name}" and task.source.startswith("http") and task.published_source
        assert task.published_scores.keys() == PUBLISHED_TOTALS.keys()
        for split in SPLITS:
            stated = getattr(task.splits, split)
            assert stated.size or (name, split, stated.printed) == ("EBM-PICO", "train", 339_167)
        assert task.published.num_seeds == (10 if name in ("BIOSSES", "BioASQ", "PubMedQA") else 5)


@pytest.mark.parametrize("model", PUBLISHED_TOTALS)
def test_the_published_scores_give_the_published_total(model):
    """Detects a typing error in any of a column's 13 figures, unless errors cancel."""
    scores = {name: find_task(name).published_scores[model] for name in MEMBERS}
    means = [sum(scores[name] for name in names) / len(names) for names in BLURB.values()]
    assert 100 * sum(means) / len(means) == pytest.approx(PUBLISHED_TOTALS[model], abs=0.0051)


def test_what_is_scored():
    assert find_task("BC5CDR-chem").tags == ("O", "B", "I")
    assert find_task("EBM-PICO").tags == ("O", "I-PAR", "I-INT", "I-OUT")
    for name, scored in {"ChemProt": 5, "DDI": 4, "GAD": 1}.items():
        task = find_task(name)
        assert len(set(task.labels) - set(task.unscored_labels)) == scored
    assert find_task("GAD").unscored_labels == ("0",)
    assert len(find_task("HoC").labels) == 10


def test_an_unknown_task_gets_a_suggestion():
    with pytest.raises(TaskError, match=r"'BC5CDR-chemical'; did you mean BC5CDR-chem\?"):
        find_task("BC5CDR-chemical")


def test_your_own_task_is_a_file_and_a_folder(mine, tmp_path, monkeypatch):
    (mine / "Findings_2-b.toml").write_text(MINE)
    (tmp_path / "findings").mkdir()
    for split in SPLITS:
        (tmp_path / "findings" / f"{split}.tsv").write_text("1\tone\tnone\n2\ttwo\tconfirms\n")
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path))
    task = find_task("Findings_2-b")
    assert (task.kind, task.group, task.metric) == ("relation", None, "micro F1")
    data = read_task(task, task_folder(task, None, tmp_path / "generated"))
    assert [(text.id, text.parts, text.label) for text in data.splits["dev"]] == [
        ("1", ("one",), "none"),
        ("2", ("two",), "confirms"),
    ]


@pytest.mark.parametrize("name", ["BC5CDR-chem", "bc5cdr_CHEM"])
def test_two_tasks_of_one_name_are_refused(mine, name):
    (mine / f"{name}.toml").write_text(MINE)
    with pytest.raises(TaskError, match=rf"two tasks are named .*BC5CDR-chem\.toml and .*{name}\.toml; remedy: rename"):
        task_files()


def test_a_missing_folder_of_tasks_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("BERT_PIPELINE_TASKS", str(tmp_path / "nowhere"))
    with pytest.raises(TaskError, match=r"BERT_PIPELINE_TASKS: .*nowhere is not a folder; remedy"):
        task_files()


@pytest.mark.parametrize("stem", ["my task", "a.b", "-a", "ä"])
def test_the_name_is_safe_in_paths_and_assets(tmp_path, stem):
    path = tmp_path / f"{stem}.toml"
    path.write_text(MINE)
    with pytest.raises(TaskError, match=r"name: .* is not allowed: .* digits and _ -, and starts"):
        load_task(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind", '"relations"'), "kind: Input should be 'ner'"),
        (("lables", '["a"]'), "lables: unknown key; did you mean labels?"),
        (("splits", '{ train = { fil = "x" } }'), "splits.train.fil: unknown key; did you mean file?"),
        (("splits", '{ train = { file = "x", size = 0 } }'), "splits.train.size: "),
        (("splits", '{ train = { file = "x", sha256 = "abc" } }'), "splits.train.sha256: "),
        (("splits", '{ train = { file = "dev.tsv" } }'), "are not three different files"),
        (("published_scores", '{ "Our BERT" = 93.3 }'), "published_scores.Our BERT: "),
        (("published", "{ num_epochs = [] }"), "published.num_epochs: "),
        (("labels", '["none"]'), "task: labels: 1 given, but a relation task needs at least 2"),
        (("labels", '["none", "none"]'), "labels: ['none', 'none'] has a duplicate"),
        (("labels", '["none", "a,b"]'), "labels: 'a,b' has a tab, comma or line break"),
        (("unscored_labels", '["maybe"]'), "unscored_labels: ['maybe'] not in labels"),
        (("unscored_labels", '["none", "confirms"]'), "no label is left to score"),
        (("label_aliases", '{ "None" = "nothing" }'), "label_aliases: 'None' = 'nothing'"),
        (("label_aliases", '{ "none" = "confirms" }'), "label_aliases: 'none' = 'confirms'"),
        (("score_range", "[0.0, 4.0]"), "score_range has no effect in a relation task"),
        (("kind", '"similarity"'), "score_range: missing; remedy"),
        (("kind", '"ner"\nheader = ["token", "tag"]'), "header: the files of this ner task have no header"),
        (("header", '["id", "text"]'), "header: 2 names; remedy: name 3 columns (id, text, class)"),
        (("folder", '""'), "folder: missing; remedy"),
        (("generated", "true"), "folder has no effect if the data is generated"),
        (("name", '"other"'), "name: the file's stem (mine) is the name"),
        (("title", '"'), "not a TOML file"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_a_fault_in_a_task_file_is_named(tmp_path, change, message):
    key, value = change
    lines = [line for line in MINE.strip().split("\n") if not line.startswith(f"{key} =")]
    path = tmp_path / "mine.toml"
    path.write_text("\n".join([*lines, f"{key} = {value}"]))
    with pytest.raises(TaskError) as error:
        load_task(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_all_faults_are_reported_at_once(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('title = 3\nkind = "qa"\nversion = "1"\nquick = { num_epochs = 0 }')
    with pytest.raises(
        TaskError, match=r"3 fault\(s\)\n  title: (.|\n)*\n  terms: missing(.|\n)*\n  quick.num_epochs: "
    ):
        load_task(path)


def test_the_quick_profile_is_one_setting_and_one_seed():
    task = find_task("BC5CDR-disease")
    how = protocol(task, TaskRecipe(name=task.name))
    assert (how.learning_rates, how.batch_sizes, how.nums_epochs) == ((5e-5,), (16,), (8,))
    assert how.num_settings == 1 and how.seeds == (1,) and how.max_seq_length == 512


def test_the_published_profile_is_the_grid_of_the_paper():
    for name, num_seeds in {"BC5CDR-chem": 5, "BIOSSES": 10}.items():
        task = find_task(name)
        how = protocol(task, TaskRecipe(name=name, profile="published"))
        assert how.learning_rates == (1e-5, 3e-5, 5e-5) and how.batch_sizes == (16, 32)
        assert all(2 <= epochs <= 60 for epochs in how.nums_epochs)
        assert how.num_settings == 6 * len(how.nums_epochs) and how.seeds == tuple(range(1, num_seeds + 1))


def test_the_recipe_overrides_the_profile():
    task = find_task("BC5CDR-chem")
    recipe = TaskRecipe(name=task.name, profile="published", learning_rate=(1e-4, 2e-4), batch_size=8, seeds=(7,))
    how = protocol(task, recipe)
    assert (how.learning_rates, how.batch_sizes, how.seeds) == ((1e-4, 2e-4), (8,), (7,))
    assert how.nums_epochs == task.published.num_epochs
    assert how.warmup_fraction == recipe.warmup_fraction and how.weight_decay == recipe.weight_decay


def test_inputs_are_limited_by_the_models_positions():
    task = find_task("ChemProt")
    settings = TaskRecipe(name=task.name)
    assert [protocol(task, settings, positions).max_seq_length for positions in (None, 512, 256, 64)] == [
        256,
        256,
        256,
        64,
    ]
    longer = settings.model_copy(update={"max_seq_length": 300})
    assert protocol(task, longer).max_seq_length == protocol(task, longer, 512).max_seq_length == 300
    with pytest.raises(TaskError, match="max_seq_length is 300, but the model has 256 positions; remedy"):
        protocol(task, longer, 256)


def test_a_grid_with_duplicate_or_missing_values_is_refused():
    task = find_task("ChemProt")
    for twice in ({"learning_rate": (1e-5, 1e-5)}, {"seeds": (1, 2, 1)}, {"batch_size": ()}):
        with pytest.raises(TaskError, match=rf"{next(iter(twice))} is \[.*\]; remedy"):
            protocol(task, TaskRecipe(name=task.name, **twice))


def test_all_missing_splits_are_named(tmp_path, monkeypatch):
    (tmp_path / "train.tsv").write_text("")
    task = find_task("BC5CDR-chem")
    with pytest.raises(TaskError) as error:
        read_task(task, tmp_path)
    assert f"{tmp_path} has no dev.tsv, test.tsv; remedy: name the folder" in str(error.value)

    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(TaskError, match=r"nowhere/blurb/BC5CDR-chem has no .*set BERT_PIPELINE_DATA to the folder of"):
        require_files(task, task_folder(task, None, tmp_path))


def test_the_sample_task_is_generated(tmp_path):
    task = find_task("sample-chem")
    folder = task_folder(task, None, tmp_path / "data")
    data = read_task(task, folder)
    assert folder == tmp_path / "data" and all(data.files[split]["size"] > 50 for split in SPLITS)
    assert task_folder(task, tmp_path / "mine", tmp_path) == tmp_path / "mine"


def test_the_fingerprint_is_a_function_of_the_description_and_the_data(tmp_path, monkeypatch, mine):
    (mine / "findings.toml").write_text(MINE)
    folder = tmp_path / "findings"
    folder.mkdir()
    for split in SPLITS:
        (folder / f"{split}.tsv").write_text("1\tone\tnone\n")
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path))

    def both() -> dict[str, str]:
        return {name: task_fingerprint(name) for name in ("findings", "sample-chem")}

    before = both()
    assert both() == before
    with (folder / "dev.tsv").open("a") as file:
        file.write("2\ttwo\tnone\n")
    other_data = both()
    (mine / "findings.toml").write_text(MINE + 'unscored_labels = ["none"]\n')
    other_task = both()
    assert len({before["findings"], other_data["findings"], other_task["findings"]}) == 3
    assert before["sample-chem"] == other_data["sample-chem"] == other_task["sample-chem"]


def listed(capsys) -> dict[str, dict]:
    assert main(["evaluate", "--list", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_the_list_describes_each_task_and_its_data(capsys, tmp_path, monkeypatch, mine):
    (mine / "findings.toml").write_text(MINE)
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path))
    for name, splits in {"findings": SPLITS, "blurb/BC5CDR-chem": ("train", "dev"), "blurb/BC2GM": SPLITS}.items():
        (tmp_path / name).mkdir(parents=True)
        for split in splits:
            (tmp_path / name / f"{split}.tsv").write_text("aspirin\tB\n\n")
    rows = listed(capsys)
    assert list(rows) == [*MEMBERS, "sample-chem", "findings"]
    chem = rows["BC5CDR-chem"]
    assert (chem["kind"], chem["group"], chem["metric"]) == ("ner", "named entity recognition", "entity F1")
    assert chem["input"].startswith("[CLS] sentence [SEP]") and chem["max_seq_length"] == 512
    assert chem["sizes"] == {"train": 5203, "dev": 5347, "test": 5385} and chem["unit"] == "entities"
    assert chem["published_scores"]["PubMedBERT"] == 0.9333 and chem["terms"]
    assert chem["data"]["state"] == "missing" and chem["data"]["missing"] == ["test"]
    assert chem["data"]["differing"] == ["train", "dev"]
    assert rows["BC5CDR-disease"]["printed_sizes"] == {"train": None, "dev": 4244, "test": None}
    assert rows["BC2GM"]["data"]["state"] == "differs" and rows["BC2GM"]["data"]["differing"] == list(SPLITS)
    assert rows["findings"]["data"]["state"] == "found" and rows["findings"]["sizes"]["dev"] is None
    assert rows["sample-chem"]["data"] == {"state": "generated"}

    assert main(["evaluate", "--list"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("task  ")
    [line] = [line for line in table.splitlines() if line.startswith("  NCBI-disease")]
    for part in ("5,134 / 787 / 960 entities", "87.82", "89.13 BioBERT", "missing train, dev, test"):
        assert part in line
    assert "  ~339,167 / 87,308 / 16,364 label words" in table, "the paper's count"
    assert "CC BY-NC 4.0; cite Herrero-Zazo" in table and f"data folder: {tmp_path}" in table


def test_the_list_needs_no_torch(run_python):
    code = (
        "import sys; from bert_pipeline.cli import main; main(['evaluate', '--list']);"
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert run_python("-c", code).returncode == 0


def test_an_evaluation_without_a_model_names_the_missing_options(capsys):
    assert main(["evaluate", "--task", "BC5CDR-chem"]) == 1
    assert "--model, --out missing; remedy" in capsys.readouterr().err


def test_a_task_survives_serialisation_as_json():
    for path in task_files().values():
        task = load_task(path)
        assert Task.model_validate_json(task.model_dump_json()) == task
