"""The launcher: it follows the training processes, and leaves none behind."""

from pathlib import Path

import pytest
import yaml
from processes import commands
from training.runs import trace, train_in_a_fork

from bert_pipeline import settings
from bert_pipeline.formats.metrics import RowFollower, append_row
from bert_pipeline.stages import make_stage
from bert_pipeline.store.artifact import ArtifactError
from bert_pipeline.training.checkpoint import CheckpointError, ForeignCheckpoint
from bert_pipeline.training.distributed import GroupError, LostProcess
from bert_pipeline.training.job import TrainingError
from bert_pipeline.training.launch import build as launch
from bert_pipeline.training.memory import TooLittleMemory
from bert_pipeline.training.pretrain import record_permanent_failure


class Cancelled(BaseException):
    """What an orchestrator raises in the launcher when somebody cancels the run."""


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    return [number for number, command in commands().items() if str(folder) in "\0".join(command)]


def test_a_cancelled_training_saves_leaves_no_process_and_resumes(tiny, tiny_recipe, tmp_path, monkeypatch):
    """Cancelled at its first row, before any checkpoint, and again after one more checkpoint, of a run that resumed.
    The run to the end and the undisturbed one are forks, as in tests that do not test the launcher.
    """
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.02)
    longer = tiny_recipe.pretrain.phases[0].model_copy(update={"num_steps": 80})  # so that there is something to cancel
    section = tiny_recipe.pretrain.model_copy(update={"phases": (longer, tiny_recipe.pretrain.phases[1])})
    recipe = tiny_recipe.model_copy(update={"pretrain": section})
    work = tmp_path / "out.partial" / "work"

    def newest_step():
        return max((int(path.name[-8:]) for path in work.glob("checkpoints/step-????????")), default=0)

    for more in (0, 1):
        alive, enough = [], newest_step() + more

        def cancel(row, alive=alive, enough=enough):
            alive.extend(processes_of(tmp_path))
            if newest_step() >= enough:
                raise Cancelled

        with pytest.raises(Cancelled):
            make_stage("pretrained_checkpoint", recipe, tiny, tmp_path / "out", cancel)
        assert alive, "the test would prove nothing"
        assert processes_of(tmp_path) == []
        assert not (tmp_path / "out").exists()
        assert enough <= newest_step() and 0 < newest_step() < 84
    monkeypatch.setattr(launch, "_run", train_in_a_fork)
    resumed = make_stage("pretrained_checkpoint", recipe, tiny, tmp_path / "out")
    undisturbed = make_stage("pretrained_checkpoint", recipe, tiny, tmp_path / "undisturbed")
    assert trace(resumed.path) == trace(undisturbed.path)
    assert (resumed.path / "model.safetensors").read_bytes() == (undisturbed.path / "model.safetensors").read_bytes()


def test_rows_are_followed_while_the_file_grows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = RowFollower(path)
    assert list(follower.new_rows()) == []
    append_row(path, {"step": 1})
    with path.open("a") as stream:
        stream.write('{"step": 2')  # a half-written line waits
    assert list(follower.new_rows()) == [{"step": 1}]
    with path.open("a") as stream:
        stream.write("}\n")
    assert list(follower.new_rows()) == [{"step": 2}]
    path.write_text("")  # a resumed run rewrites the file
    append_row(path, {"step": 1})
    assert list(follower.new_rows()) == [{"step": 1}]


class Started(Exception):
    """Raised where the training processes would start."""


@pytest.mark.parametrize(("processes", "refused"), [(2, False), (3, False), (16, False), (17, True)])
def test_batches_that_do_not_divide_among_the_processes_are_reported_before_they_start(
    tiny, tiny_recipe, tmp_path, monkeypatch, caplog, processes, refused
):
    """Batches of 16 pairs divide evenly among 2 and 16 processes, unevenly among 3, and are too small for 17."""

    def run(*_):
        raise Started

    config = yaml.safe_load(settings.accelerate_config().read_text()) | {"num_processes": processes}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setattr(launch, "_run", run)
    phases = tuple(phase.model_copy(update={"global_batch_size": 16}) for phase in tiny_recipe.pretrain.phases)
    recipe = tiny_recipe.model_copy(update={"pretrain": tiny_recipe.pretrain.model_copy(update={"phases": phases})})
    message = "phases.0.global_batch_size is 16, but 17 processes were launched; remedy: a larger batch or fewer"
    with pytest.raises(TrainingError if refused else Started, match=message if refused else None):
        make_stage("pretrained_checkpoint", recipe, tiny, tmp_path / "out")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if processes == 3:
        expected = (
            "global_batch_size 16 is not a multiple of the 3 processes: in each step 1 of them get 6 pairs and 2 get 5;"
        )
        assert len(warned) == 2 and all(expected in each for each in warned)
    else:
        assert not warned


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (ArtifactError("damaged"), True),
        (FileNotFoundError("no such dataset"), True),
        (TooLittleMemory("not even one pair"), True),
        (ForeignCheckpoint("of another recipe"), True),
        (GroupError("2 were expected"), True),
        (LostProcess("it does not answer"), False),
        (CheckpointError("the disk is full"), False),
        (RuntimeError("CUDA error: unspecified launch failure"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_errors_that_a_restart_would_repeat_are_recorded(tmp_path, error, recorded):
    with pytest.raises(type(error)), record_permanent_failure(tmp_path):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["failed"] * recorded
    if recorded:
        assert (tmp_path / "failed").read_text() == f"{type(error).__name__}: {error}"


def test_a_missing_accelerate_config_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(
        FileNotFoundError, match=r"/none\.yaml: no such file; remedy: .*ACCELERATE_CONFIG .*, or to one of cpu, "
    ):
        settings.accelerate_config()


def test_every_accelerate_config_is_read_by_accelerate():
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted(settings.ACCELERATE_CONFIGS.glob("*.yaml"))
    assert len(files) >= 4
    for path in files:
        assert load_config_from_file(str(path)).num_processes >= 1
