"""A task model answers as its evaluation predicted, as a directory, in transformers' pipelines, and on long texts."""

import json
import os

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline

from bert_pipeline import cli
from bert_pipeline.evaluation.evaluate import evaluate_task
from bert_pipeline.evaluation.finetuning.export import joining_characters
from bert_pipeline.evaluation.scoring.predictions import read_predictions
from bert_pipeline.evaluation.scoring.scores import entities
from bert_pipeline.evaluation.task_models.annotate import Annotator, NoTaskModel, spans, tags_of_words
from bert_pipeline.evaluation.task_models.build import best_run, build_task_model
from bert_pipeline.evaluation.task_models.predict import load_annotator
from bert_pipeline.evaluation.tasks.readers import Sentence, Text, read_task
from bert_pipeline.evaluation.tasks.task import find_task, task_fingerprint
from bert_pipeline.recipe import TaskRecipe
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import ArtifactError

KINDS = ("ner", "pico", "relation", "similarity", "documents", "qa")


@pytest.fixture(scope="module")
def task_models(tmp_path_factory, model_dir, small_tasks, evaluation_in_this_process):
    """The directory of the task model of each kind; built once."""
    folder = tmp_path_factory.mktemp("task_models")

    def build(kind):
        settings = TaskRecipe(
            name=f"small-{kind}", learning_rate=3e-3, batch_size=16, num_epochs=4, max_seq_length=64, seeds=(2,)
        )
        return build_task_model(settings, model_dir, None, folder / kind).path

    return build


def inputs_of(name, small_tasks):
    """The texts of the test split, and what the file calls them."""
    task = find_task(name)
    examples = read_task(task, small_tasks / name).splits["test"]
    return [tuple(each.parts) if hasattr(each, "parts") else (" ".join(each.tokens),) for each in examples]


def places(tokens):
    start = 0
    for token in tokens:
        yield start, start + len(token)
        start += len(token) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_the_predictions_of_the_evaluation(kind, task_models, small_tasks):
    directory, task = task_models(kind), find_task(f"small-{kind}")
    _, predicted = read_predictions(directory / "predictions" / "test.tsv", task)
    texts = inputs_of(task.name, small_tasks)
    answers = load_annotator(directory).answers(texts)
    if kind in ("ner", "pico"):
        assert sum(len(each["spans"]) for each in answers) > 10
        for (text,), tags, answer in zip(texts, predicted, answers, strict=True):
            words = list(places(text.split(" ")))
            named = {(kind or "small-ner", words[start][0], words[end - 1][1]) for kind, start, end in entities(tags)}
            assert {(each["type"], each["start"], each["end"]) for each in answer["spans"]} == named
            assert all(text[each["start"] : each["end"]] == each["text"] for each in answer["spans"])
            assert all(0 < each["score"] <= 1 for each in answer["spans"])
    elif kind == "similarity":
        assert [each["value"] for each in answers] == pytest.approx(predicted, abs=0.05)
    elif kind == "documents":
        assert [frozenset(each["labels"]) for each in answers] == predicted
    else:
        assert [each["label"] for each in answers] == predicted
        assert all(sum(each["scores"].values()) == pytest.approx(1) for each in answers)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_give_the_answers_of_packed_rows(kind, task_models, small_tasks, monkeypatch):
    """The service computes padded rows with plain transformers, `predict` packed ones."""
    monkeypatch.setenv("BERT_PIPELINE_FINETUNING_PRECISION", "float32")
    directory, texts = task_models(kind), inputs_of(f"small-{kind}", small_tasks)
    packed, padded = load_annotator(directory).answers(texts), Annotator(directory, directory).answers(texts)
    for one, other in zip(packed, padded, strict=True):
        assert one.keys() == other.keys()
        if "spans" in one:
            assert [each | {"score": 0} for each in one["spans"]] == [each | {"score": 0} for each in other["spans"]]
        if "scores" in one:
            assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)


@pytest.mark.parametrize("kind", ["ner", "pico", "relation", "similarity", "documents", "qa"])
def test_the_pipelines_of_transformers_agree(kind, task_models, small_tasks):
    directory, texts = task_models(kind), inputs_of(f"small-{kind}", small_tasks)[:10]
    answers = Annotator(directory, directory).answers(texts)
    if kind in ("ner", "pico"):
        found = pipeline("token-classification", str(directory), aggregation_strategy="first")
        for (text,), answer in zip(texts, answers, strict=True):
            theirs = [(each["entity_group"], each["start"], each["end"], each["score"]) for each in found(text)]
            ours = [(each["type"], each["start"], each["end"], each["score"]) for each in answer["spans"]]
            assert [each[:3] for each in ours] == [each[:3] for each in theirs]
            assert [each[3] for each in ours] == pytest.approx([each[3] for each in theirs], abs=1e-4)
        return
    found = pipeline("text-classification", str(directory))
    for parts, answer in zip(texts, answers, strict=True):
        asked = {"text": parts[0], "text_pair": parts[1]} if len(parts) == 2 else parts[0]
        theirs = {each["label"]: each["score"] for each in found(asked, top_k=None)}
        ours = answer["scores"] if "scores" in answer else {"score": answer["value"]}
        assert theirs == pytest.approx(ours, abs=1e-4)


@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"]), max_size=12))
def test_spans_are_the_entities_of_the_scorer(tags):
    places = [(3 * n, 3 * n + 2) for n in range(len(tags))]
    found = {(each["type"], each["start"] // 3, (each["end"] + 1) // 3) for each in spans("", places, tags, [1.0] * 12)}
    assert found == entities(tags)


def test_long_text_is_read_in_windows(task_models, small_tasks):
    """Sentences joined to one text: no word is lost, and far from an edge an answer is that of the window around it."""
    directory = task_models("ner")
    annotator = load_annotator(directory)
    sentences = [text for (text,) in inputs_of("small-ner", small_tasks)]
    text = " ".join(sentences)
    windows = list(annotator._windows([(text,)], [0]))
    assert len(windows) > 8 and all(len(each.input_ids) <= 64 for each in windows)
    pieces = [torch.zeros(len(each.outputs), 3) for each in windows]
    words, tags, _ = tags_of_words(list(zip(windows, pieces, strict=True)), ["O", "B", "I"])
    assert "".join(text[start:end] for start, end in words) == text.replace(" ", "")
    assert len(tags) == len(words)
    [answer] = annotator.answers([(text,)])
    drugs = [each for each in answer["spans"] if any(part in each["text"] for part in ("olol", "dilol"))]
    assert len(drugs) > 0.9 * sum(text.count(part) for part in ("prolol", "nolol", "dilol"))
    ends = [0, *(each["end"] for each in answer["spans"])]
    assert all(each["start"] >= end for each, end in zip(answer["spans"], ends, strict=False)), "no word counts twice"


def test_a_word_counts_in_the_window_with_most_context(task_models):
    annotator = load_annotator(task_models("ner"))
    text = "pain " * 60
    windows = list(annotator._windows([(text,)], [0]))
    told: dict[int, list[tuple[int, int]]] = {}
    for number, each in enumerate(windows):
        for position, (start, _) in zip(each.outputs, each.words, strict=True):
            told.setdefault(start // 5, []).append((min(position, len(each.input_ids) - 1 - position), number))
    chosen = {word: max(places)[1] for word, places in told.items()}
    annotator.compute = lambda those: torch.cat(
        [torch.tensor([[0.0, 1.0 + windows.index(each), 0.0]]).repeat(len(each.outputs), 1) for each in those]
    )
    [answer] = annotator.answers([(text,)])
    share = [torch.tensor([0.0, 1.0 + chosen[n], 0.0]).softmax(0)[1].item() for n in range(60)]
    assert [each["score"] for each in answer["spans"]] == pytest.approx(share)


def test_words_are_those_of_the_training_file(task_models, small_tasks):
    """A hyphen that the file has inside words joins them; where it separates words, it does so here."""
    sentence = Sentence("1", ("NF-kappa", "(", "B", ")", "+/-", "-", "x-y/z"), ("O",) * 7)
    assert joining_characters([sentence]) == "-/" and joining_characters([Text("1", ("a-b",), "x")]) == ""
    annotator = load_annotator(task_models("ner"))
    text = "pain-with (daily-dose) no- effect -a/b"

    def words(joining):
        annotator.joining = frozenset(joining)
        [window] = annotator._windows([(text,)], [0])
        first_pieces = [window.input_ids[position] for position in window.outputs]
        assert len(first_pieces) == len(window.words)
        return [text[start:end] for start, end in window.words]

    assert words("") == ["pain", "-", "with", "(", "daily", "-", "dose", ")", "no", "-", "effect", "-", "a", "/", "b"]
    assert words("-") == ["pain-with", "(", "daily-dose", ")", "no", "-", "effect", "-a", "/", "b"]
    assert words("-/") == ["pain-with", "(", "daily-dose", ")", "no", "-", "effect", "-a/b"]


def test_classes_of_long_text_are_those_of_its_windows(task_models):
    text = "growth of vessels " + "pain with patients " * 60
    for kind in ("documents", "relation"):
        annotator = load_annotator(task_models(kind))
        logits = torch.cat(annotator._logits(list(annotator._windows([(text,)], [0]))))
        assert len(logits) > 2
        scores = logits.sigmoid().amax(0) if kind == "documents" else logits.softmax(-1).mean(0)
        [answer] = annotator.answers([(text,)])
        assert [*answer["scores"].values()] == pytest.approx(scores.tolist())
        likely = [label for label, score in answer["scores"].items() if score > 0.5]
        assert (
            likely == answer["labels"]
            if kind == "documents"
            else answer["label"] == max(answer["scores"], key=answer["scores"].get)
        )


def test_a_pair_that_does_not_fit_is_refused(task_models):
    similarity, qa = load_annotator(task_models("similarity")), load_annotator(task_models("qa"))
    short, long = "pain with pain", "pain " * 70
    answers = similarity.answers([(short, long), (short, short)])
    assert "the pair has 76 tokens, and 64 are possible" in answers[0]["error"] and "value" in answers[1]
    answers = qa.answers([(short, f"{long} helps"), (long, short)])
    assert answers[0]["label"] and "the question has" in answers[1]["error"]


def test_text_without_a_word_has_no_span(task_models):
    answers = load_annotator(task_models("ner")).answers([("",), (" \x07 ",), ("atenolol",)])
    assert [len(each["spans"]) for each in answers] == [0, 0, 1]
    assert load_annotator(task_models("ner")).answers([("",)]) == [{"spans": []}]


def test_the_best_seed_on_dev_is_repeated(tmp_path, model_dir, small_tasks, task_models, caplog):
    settings = TaskRecipe(
        name="small-relation", learning_rate=(1e-4, 3e-3), num_epochs=2, max_seq_length=64, seeds=(1, 2, 3)
    )
    evaluate_task(settings, model_dir, None, tmp_path / "evaluation", lambda row: None, baseline=False)
    scores = json.loads((tmp_path / "evaluation" / "scores.json").read_text())
    runs = [run for run in scores["runs"] if run["encoder"] == "pretrained"]
    best = max(runs, key=lambda run: run["dev"]["score"])
    chosen = best_run(tmp_path / "evaluation", "small-relation", model_dir)
    made = build_task_model(chosen, model_dir, None, tmp_path / "model")
    assert made.facts["seed"] == best["seed"]
    assert (made.facts["dev"], made.facts["test"]) == (best["dev"], best["test"])
    name = f"pretrained-seed{best['seed']}-test.tsv"
    assert (made.path / "predictions/test.tsv").read_text() == (tmp_path / "evaluation/predictions" / name).read_text()
    with pytest.raises(ArtifactError, match=r"evaluates another model, or small-relation, not .* on small-qa; remedy"):
        best_run(tmp_path / "evaluation", "small-qa", model_dir)
    with pytest.raises(ArtifactError, match=r"no scores\.json; remedy"):
        best_run(tmp_path, "small-qa", model_dir)


def test_the_directory_is_an_artifact_with_a_card(task_models, model_dir):
    directory = task_models("ner")
    assert {path.name for path in directory.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "record.json", "predictions"),
    }
    assert artifact.load(directory, "task_model").facts["test"]["score"] > 0.5
    data = ModelCard.load(directory / "README.md", ignore_metadata_errors=False).data
    assert (data.pipeline_tag, data.library_name, data.license) == ("token-classification", "transformers", "unknown")
    [result] = data.eval_results
    assert result.metric_value == pytest.approx(artifact.load(directory).facts["test"]["score"], abs=1e-6)


def test_the_type_of_entities_changes_no_fingerprint(small_tasks, tmp_path, monkeypatch):
    before = task_fingerprint("small-ner")
    text = (small_tasks.parent / "tasks" / "small-ner.toml").read_text()
    (tmp_path / "small-ner.toml").write_text(f'entity = "Drug"\n{text}')
    monkeypatch.setenv("BERT_PIPELINE_TASKS", str(tmp_path))
    assert find_task("small-ner").entity == "Drug" and task_fingerprint("small-ner") == before


def test_predict_answers_every_record(task_models, tmp_path, capsys):
    (tmp_path / "texts.jsonl").write_text(
        '{"id": "a", "text": "pain after atenolol"}\n{"id": "b"\n{"id": "c", "text": "no effect"}\n'
    )
    command = ["predict", "--model", str(task_models("ner")), "--text", str(tmp_path / "texts.jsonl")]
    assert cli.main([*command, "--id-field", "id"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["id"] for each in answers] == ["a", "texts.jsonl, line 2", "c"]
    assert answers[0]["spans"][0] | {"score": 0} == {
        "start": 11, "end": 19, "type": "small-ner", "score": 0, "text": "atenolol"
    }  # fmt: skip
    assert answers[1]["error"].startswith("line is not JSON") and answers[2]["spans"] == []
    assert cli.main([*command, "--out", str(tmp_path / "answers.jsonl")]) == 0
    assert capsys.readouterr().out == f"3 answers in {tmp_path}/answers.jsonl, 1 of them errors\n"
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [each["id"] for each in written] == ["texts.jsonl:1", "texts.jsonl, line 2", "texts.jsonl:3"]
    os.mkfifo(tmp_path / "pipe")
    assert cli.main([*command, "--out", str(tmp_path / "pipe")]) == 1, "a rename would replace it"
    assert "is not a regular file; remedy: leave --out out" in capsys.readouterr().err


def test_predict_reads_pairs_from_two_fields(task_models, tmp_path, capsys):
    (tmp_path / "pairs.tsv").write_text("a\tb\npain with\tsame effect\n")
    model = ["--model", str(task_models("similarity")), "--text", str(tmp_path / "pairs.tsv")]
    assert cli.main(["predict", *model, "--text-field", "a", "b"]) == 0
    [answer] = load_annotator(task_models("similarity")).answers([("pain with", "same effect")])
    assert json.loads(capsys.readouterr().out) == {"id": "pairs.tsv:2"} | answer


def test_a_pretrained_model_cannot_predict(model_dir, tmp_path):
    with pytest.raises(NoTaskModel, match=r"is not fine-tuned on a task; remedy: bert-pipeline finetune --model"):
        load_annotator(model_dir)
    with pytest.raises(NoTaskModel, match=r"has no config\.json"):
        load_annotator(tmp_path)
