"""One run: every kind of task learns, and a killed run ends like an undisturbed one."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from training.runs import exit_code, fork_ranks
from transformers import AutoTokenizer, BertConfig

from bert_pipeline.evaluation.finetuning.batches import batches_by_length, epoch_batches, packed, padded, targets
from bert_pipeline.evaluation.finetuning.engine import TaskModel, usual_computation
from bert_pipeline.evaluation.finetuning.finetune import finetune, predict
from bert_pipeline.evaluation.finetuning.heads import build_task_model
from bert_pipeline.evaluation.finetuning.inputs import encode_task
from bert_pipeline.evaluation.finetuning.protocol import Run, Setting, protocol
from bert_pipeline.evaluation.scoring.scores import gold_labels, scores
from bert_pipeline.evaluation.tasks.readers import Sentence, TaskData, Text
from bert_pipeline.recipe import TaskRecipe

KINDS = ("ner", "pico", "relation", "similarity", "documents", "qa")
SETTING = Setting(3e-3, 16, 10)


def run_task(model_dir, task, data, work, encoder="pretrained", seed=1, setting=SETTING, max_seq_length=64):
    how = protocol(task, TaskRecipe(name=task.name), max_seq_length)
    inputs = encode_task(model_dir, task, data, max_seq_length)
    return finetune(model_dir, inputs, Run(encoder, setting, seed), how, work, lambda step, of: None)


def on_this_machine(model, task, inputs):
    return TaskModel(model, task, inputs.pad_id, usual_computation(model.config, torch.device("cpu")))


def encode(model_dir, task, *examples, max_seq_length=64):
    return encode_task(model_dir, task, TaskData({"train": list(examples)}, {}), max_seq_length)


def pieces_of(model_dir, ids):
    return AutoTokenizer.from_pretrained(model_dir).convert_ids_to_tokens(ids)


# Inputs


def test_the_label_sits_on_the_first_piece_of_a_word(model_dir, small_task):
    task, _ = small_task("small-ner")
    sentence = Sentence("1", ("pain", "metoprolol", "(tartrate)", "."), ("O", "B", "I", "O"))
    [each] = encode(model_dir, task, sentence).splits["train"]
    assert each.words.tolist() == [0, 1, 2, 3]
    pieces = pieces_of(model_dir, each.input_ids)
    firsts = [pieces[n] for n in each.first_pieces]
    assert (firsts[0], firsts[2], firsts[3]) == ("pain", "(", ".") and "metoprolol".startswith(firsts[1])
    labels = {pieces[n]: int(label) for n, label in enumerate(each.target) if label != -100}
    assert labels == {firsts[0]: 0, firsts[1]: 1, firsts[2]: 2, firsts[3]: 0}
    assert len(pieces) > 6 and pieces[0] == "[CLS]"


def test_a_word_without_pieces_shifts_no_label(model_dir, small_task):
    task, _ = small_task("small-ner")
    sentence = Sentence("1", ("\x07", "pain", "\u200b\u200d", "atenolol", "\x00"), ("O", "O", "O", "B", "O"))
    inputs = encode(model_dir, task, sentence)
    [each] = inputs.splits["train"]
    assert each.words.tolist() == [1, 3]
    assert inputs.out_of_input["train"] == {"words": 3, "gold": 0}


def test_two_texts_are_two_segments_and_only_the_context_is_truncated(model_dir, small_task):
    task, _ = small_task("small-qa")
    question, context = "patients with pain", "a daily dose was seen after treatment"
    [whole] = encode(model_dir, task, Text("1", (question, context), "yes")).splits["train"]
    expected = ["[CLS]", *question.split(), "[SEP]", *context.split(), "[SEP]"]
    assert pieces_of(model_dir, whole.input_ids) == expected
    assert padded([whole], 0)["token_type_ids"].tolist() == [[0] * 5 + [1] * 8]
    assert packed([whole], 0)["token_type_ids"][0, :13].tolist() == [0] * 5 + [1] * 8
    assert targets([whole]).tolist() == [0]
    cut = encode(model_dir, task, Text("1", (question, context), "no"), max_seq_length=10)
    assert pieces_of(model_dir, cut.splits["train"][0].input_ids) == [*expected[:9], "[SEP]"]
    assert cut.out_of_input["train"] == {"words": 3, "gold": 1}


def test_a_question_that_fills_the_input_is_truncated_too(model_dir, small_task):
    task, _ = small_task("small-qa")
    long = Text("1", ("pain " * 30, "dose of pain"), "yes")
    [each] = encode(model_dir, task, long, max_seq_length=16).splits["train"]
    assert len(each.input_ids) == 16
    assert pieces_of(model_dir, each.input_ids)[-4:] == ["dose", "of", "pain", "[SEP]"]


def test_the_longer_of_two_sentences_is_truncated(model_dir, small_task):
    task, _ = small_task("small-similarity")
    [each] = encode(model_dir, task, Text("1", ("pain " * 20, "a dose"), 3.0), max_seq_length=10).splits["train"]
    assert pieces_of(model_dir, each.input_ids) == ["[CLS]", *["pain"] * 5, "[SEP]", "a", "dose", "[SEP]"]
    assert each.target == pytest.approx(0.75)


def test_dummies_are_ordinary_text(model_dir, small_task):
    task, _ = small_task("small-relation")
    [each] = encode(model_dir, task, Text("1", ("@GENE$ blocks @CHEMICAL$",), "inhibitor")).splits["train"]
    pieces = pieces_of(model_dir, each.input_ids)
    assert pieces == ["[CLS]", "@", "gene", "$", "blocks", "@", "chemical", "$", "[SEP]"]


def test_entities_beyond_the_models_input_count_as_missed(model_dir, small_task):
    """Truncation keeps all gold labels, so it can only lower recall."""
    task, data = small_task("small-ner")
    inputs = encode_task(model_dir, task, data, max_seq_length=8)
    cut, gold = inputs.splits["test"], gold_labels(data.splits["test"])
    model, _ = build_task_model(model_dir, "pretrained", task)
    says_b = {"classifier.weight": torch.zeros(3, 32), "classifier.bias": torch.tensor([0.0, 1.0, 0.0])}
    model.load_state_dict(says_b, strict=False)
    predicted = predict(on_this_machine(model, task, inputs), cut)
    visible = [set(each.words.tolist()) for each in cut]
    for tags, seen, truth in zip(predicted, visible, gold, strict=True):
        assert tags == tuple("B" if n in seen else "O" for n in range(len(truth)))
    # Every word it sees is an entity of one word, so these are the ones it finds.
    found = sum(
        truth[n] == "B" and (*truth, "O")[n + 1] != "I" for truth, seen in zip(gold, visible, strict=True) for n in seen
    )
    num_gold = sum(truth.count("B") for truth in gold)
    assert scores(task, gold, predicted)["recall"] == pytest.approx(found / num_gold)
    # An entity is lost when any of its words is: those wholly in the input are the rest.
    whole = 0
    for truth, seen in zip(gold, visible, strict=True):
        for n in (n for n, tag in enumerate(truth) if tag == "B"):
            end = next((k for k in range(n + 1, len(truth)) if truth[k] != "I"), len(truth))
            whole += set(range(n, end)) <= seen
    lost = inputs.out_of_input["test"]
    assert lost["gold"] == num_gold - whole > 0
    assert lost["words"] == sum(len(truth) - len(seen) for truth, seen in zip(gold, visible, strict=True)) > 0


def test_label_words_beyond_the_input_are_counted(model_dir, small_task):
    task, _ = small_task("small-pico")
    sentence = Sentence("1", ("women", "with", "pain", "aspirin", "aspirin"), ("I-PAR", "O", "O", "I-INT", "I-INT"))
    inputs = encode(model_dir, task, sentence, max_seq_length=8)
    assert inputs.out_of_input["train"] == {"words": 0, "gold": 0}
    inputs = encode(model_dir, task, Sentence("1", sentence.tokens * 2, sentence.tags * 2), max_seq_length=8)
    assert inputs.out_of_input["train"] == {"words": 4, "gold": 2}


# Batches


@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=300),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 99),
)
def test_an_epoch_has_every_example_once(lengths, batch_size, seed, epoch):
    batches = epoch_batches(lengths, batch_size, seed, epoch)
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size) and all(len(batch) <= batch_size for batch in batches)
    again = epoch_batches(lengths, batch_size, seed, epoch)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=300), tokens=st.integers(1, 2_000))
def test_prediction_batches_hold_every_example_within_the_limit_of_tokens(lengths, tokens):
    batches = list(batches_by_length(lengths, tokens))
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= tokens for batch in batches)


def test_batches_are_of_like_length_and_differ_between_epochs_and_seeds():
    lengths = np.random.default_rng(0).integers(3, 120, size=1_000).tolist()
    epochs = {(s, e): epoch_batches(lengths, 32, s, e) for s, e in [(1, 0), (1, 1), (2, 0)]}
    orders = {key: tuple(np.concatenate(batches)) for key, batches in epochs.items()}
    assert len(set(orders.values())) == 3
    assert sum(len(batch) * max(lengths[n] for n in batch) for batch in epochs[1, 0]) < 1.1 * sum(lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_does_not_depend_on_the_batch_it_is_in(model_dir, small_task, kind):
    task, data = small_task(f"small-{kind}")
    inputs = encode_task(model_dir, task, data, 64)
    torch.manual_seed(3)
    model, _ = build_task_model(model_dir, "pretrained", task)
    wrapped = on_this_machine(model, task, inputs)
    model.eval()
    with torch.no_grad():  # so that no class wins everywhere or by a narrow margin
        logits = wrapped.logits(inputs.splits["test"]).sort(0).values
        model.classifier.bias -= (logits[len(logits) // 2 - 1] + logits[len(logits) // 2]) / 2
    together = predict(wrapped, inputs.splits["test"])
    one_by_one = predict(wrapped, inputs.splits["test"], tokens=1)
    if kind == "similarity":
        assert together == pytest.approx(one_by_one, abs=1e-5)
        assert np.std(together) > 1e-3, "a model that says one thing would show nothing"
    else:
        assert together == one_by_one
        assert len(set(together)) > 1, "a model that says one thing would show nothing"


# Training


CHANCE = {"ner": 0.5, "pico": 0.4, "relation": 0.6, "similarity": 0.3, "documents": 0.65, "qa": 0.5}
"""Rounded-up score of a model that learned only the frequency of the labels."""


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_and_the_same_seed_gives_the_same(model_dir, small_task, tmp_path, kind):
    task, data = small_task(f"small-{kind}")
    outcome = run_task(model_dir, task, data, tmp_path / "1")
    for split in ("dev", "test"):
        found = scores(task, gold_labels(data.splits[split]), outcome.predicted[split])
        assert found["score"] > 0.9 > CHANCE[kind]
    assert len(outcome.epoch_losses) == 10 and outcome.epoch_losses[-1] < outcome.epoch_losses[0] / 2
    if kind == "similarity":
        assert found["mse"] < 0.5, "predicted in the range of the scores"
    short = Setting(3e-3, 16, 1)
    first, again, other = (
        run_task(model_dir, task, data, tmp_path / str(n), seed=seed, setting=short)
        for n, seed in ((2, 1), (3, 1), (4, 2))
    )
    assert first == again
    assert first.epoch_losses != other.epoch_losses


KILLED = """
import os, pathlib, random, signal, sys, time
import torch
from bert_pipeline.evaluation.finetuning import finetune as module
from bert_pipeline.evaluation.finetuning.inputs import encode_task
from bert_pipeline.evaluation.finetuning.protocol import Run, Setting, protocol
from bert_pipeline.evaluation.tasks.readers import read_task
from bert_pipeline.evaluation.tasks.task import find_task
from bert_pipeline.recipe import TaskRecipe

model_dir, data, out = map(pathlib.Path, sys.argv[1:4])
os.environ["BERT_PIPELINE_FINETUNING_PRECISION"] = sys.argv[4]
torch.set_num_threads(1)

def start(name, seconds_between_checkpoints):
    process = os.fork()  # after the imports, which take long
    if process:
        return process
    module.SECONDS_BETWEEN_CHECKPOINTS = seconds_between_checkpoints
    task = find_task("small-ner")
    inputs = encode_task(model_dir, task, read_task(task, data / "small-ner"), 64)
    run, how = Run("pretrained", Setting(3e-3, 16, 3), 1), protocol(task, TaskRecipe(name="small-ner"), 64)
    steps = open(out / f"{name}.steps", "a", buffering=1)
    outcome = module.finetune(model_dir, inputs, run, how, out / name, lambda step, of: print(step, file=steps))
    (out / f"{name}.txt").write_text(repr((outcome, outcome.model.how)))
    os._exit(0)

steps, rng = out / "killed.steps", random.Random(5)
steps.touch()
for wanted in (rng.randint(2, 12), rng.randint(15, 25), rng.randint(26, 35)):  # of 39 steps
    process = start("killed", 0)
    while int((steps.read_text().split() or ["0"])[-1]) < wanted:
        time.sleep(rng.random() / 500)
    os.kill(process, signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL, "it ended before it was killed"
for name, seconds in (("killed", 0), ("undisturbed", 1e9)):
    assert os.waitpid(start(name, seconds), 0)[1] == 0
"""


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_a_killed_run_resumes_bit_for_bit(model_dir, small_tasks, tmp_path, precision):
    (tmp_path / "killed.py").write_text(KILLED)
    [process] = fork_ranks(tmp_path / "killed.py", [model_dir, small_tasks, tmp_path, precision], 1, tmp_path / "said")
    assert exit_code(process) == 0, (tmp_path / "said").read_text()
    numbers = [int(line) for line in (tmp_path / "killed.steps").read_text().split()]
    begins = [now for before, now in zip([99, *numbers], numbers, strict=False) if now <= before]
    assert len(begins) == 4 and begins[0] == 0 and all(begins[1:]), "every restart resumed"
    assert (tmp_path / "killed.txt").read_text() == (tmp_path / "undisturbed.txt").read_text()
    assert f"precision='{precision}', rows='packed'" in (tmp_path / "killed.txt").read_text()


def test_a_run_that_diverges_is_an_error_and_no_score(model_dir, small_task, tmp_path):
    task, data = small_task("small-ner")
    with pytest.raises(FloatingPointError, match=r"pretrained, seed 1: the training loss is .*remedy"):
        run_task(model_dir, task, data, tmp_path, setting=Setting(1e38, 16, 1))


def test_sentences_without_pieces_are_tagged_but_not_trained_on(model_dir, small_task, tmp_path):
    task, _ = small_task("small-ner")
    nothing, drug = Sentence("1", ("\x07",), ("O",)), Sentence("2", ("atenolol", "helps"), ("B", "O"))
    data = TaskData({"train": [nothing, drug], "dev": [drug], "test": [nothing, drug]}, {})
    steps = []
    how = protocol(task, TaskRecipe(name="x"), 16)
    inputs = encode_task(model_dir, task, data, 16)
    run = Run("pretrained", Setting(1e-3, 1, 1), 1)
    found = finetune(model_dir, inputs, run, how, tmp_path, lambda step, of: steps.append((step, of)))
    assert steps == [(0, 1), (1, 1)]
    assert found.predicted["test"][0] == ("O",) and len(found.predicted["test"][1]) == 2


# Checkpoints


def test_random_init_differs_from_pretrained_only_in_the_weights(model_dir, small_task):
    task, _ = small_task("small-ner")
    stored = load_file(model_dir / "model.safetensors")
    models = {}
    for encoder in ("pretrained", "random_init"):
        torch.manual_seed(1)
        models[encoder], _ = build_task_model(model_dir, encoder, task)
    pretrained, random_init = (models[name].state_dict() for name in ("pretrained", "random_init"))
    unlike = {"architectures", "dtype", "_name_or_path"}  # the origin of the config, not its values
    configs = [
        {key: value for key, value in model.config.to_dict().items() if key not in unlike} for model in models.values()
    ]
    assert configs[0] == configs[1]
    assert configs[0]["hidden_dropout_prob"] == configs[0]["attention_probs_dropout_prob"] == 0.1
    assert {name: value.shape for name, value in pretrained.items()} == {
        name: value.shape for name, value in random_init.items()
    }
    encoder_weights = [name for name in pretrained if name.startswith("bert.") and is_random(stored[name])]
    assert len(encoder_weights) > 10
    for name in encoder_weights:
        assert torch.equal(pretrained[name], stored[name])
        assert not torch.equal(random_init[name], stored[name])


def is_random(tensor):
    return tensor.unique().numel() > 1  # not a bias of zeros, nor a LayerNorm's ones


def without(model_dir, folder, part, rename=lambda name: name):
    """Copy the model without the weights whose names begin with `part`."""
    shutil.copytree(model_dir, folder)
    stored = load_file(model_dir / "model.safetensors")
    kept = {rename(name): value for name, value in stored.items() if not name.startswith(part)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_encoder_with_unprefixed_names_is_loaded(model_dir, small_task, tmp_path):
    """Sentence encoders are stored like this."""
    task, _ = small_task("small-relation")
    plain = without(model_dir, tmp_path / "plain", "cls.", lambda name: name.removeprefix("bert."))
    model, fresh_pooler = build_task_model(plain, "pretrained", task)
    stored = load_file(model_dir / "model.safetensors")
    for name in ("bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight"):
        assert torch.equal(model.state_dict()[name], stored[name])
    assert not fresh_pooler


def test_a_missing_pooler_becomes_part_of_the_fresh_head(model_dir, small_task, tmp_path):
    folder = without(model_dir, tmp_path / "poolerless", "bert.pooler.")
    for name, expected in (("small-relation", True), ("small-ner", False)):
        task, _ = small_task(name)
        assert build_task_model(folder, "pretrained", task)[1] == expected


def test_weights_of_another_architecture_are_refused(model_dir, small_task, tmp_path):
    folder = without(model_dir, tmp_path / "short", "bert.encoder.layer.1.")
    for name in ("small-ner", "small-qa"):
        task, _ = small_task(name)
        with pytest.raises(ValueError, match=r"short: the weights lack 16 of .*bert\.encoder\.layer\.1\..*remedy"):
            build_task_model(folder, "pretrained", task)


def test_a_pickle_is_not_opened(model_dir, small_task, tmp_path):
    task, _ = small_task("small-ner")
    shutil.copytree(model_dir, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(model_dir / "model.safetensors"), tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        build_task_model(tmp_path / "old", "pretrained", task)


def test_a_length_beyond_the_models_positions_is_refused(model_dir, small_task):
    task, data = small_task("small-ner")
    with pytest.raises(ValueError, match=r"max_seq_length is 65, but .* has 64 positions; remedy"):
        encode_task(model_dir, task, data, 65)


def test_a_tokenizer_of_another_model_is_refused(model_dir, small_task, tmp_path):
    task, data = small_task("small-ner")
    shutil.copytree(model_dir, tmp_path / "mixed")
    config = BertConfig.from_pretrained(model_dir)
    config.vocab_size = 50
    config.save_pretrained(tmp_path / "mixed")
    with pytest.raises(ValueError, match=r"mixed: the tokenizer has \d+ pieces, the model 50; remedy"):
        encode_task(tmp_path / "mixed", task, data, 64)


def test_a_folder_without_a_model_is_refused(tmp_path, small_task):
    task, data = small_task("small-ner")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; remedy"):
        encode_task(tmp_path, task, data, 64)
