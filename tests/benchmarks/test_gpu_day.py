"""What runs on a day with a GPU, at a tiny size on the CPU."""

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu_day

SCRIPT = Path(gpu_day.__file__).with_name("gpu_day.sh")


@pytest.mark.slow
def test_all_steps_over_several_calls(tmp_path):
    """Minutes: a call that has too little time for a step ends with 75, and the next one continues."""
    environment = os.environ | {"GPU_DAY_WORK": str(tmp_path / "work"), "GPU_DAY_SECONDS": "300"}
    codes = []
    while not codes or (codes[-1] == 75 and len(codes) < 10):
        call = [str(SCRIPT), str(tmp_path / "out"), "--smoke"]
        finished = subprocess.run(call, env=environment, capture_output=True, text=True)
        codes.append(finished.returncode)
    assert codes[-1] == 0, finished.stdout + finished.stderr
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert found["resumed"]["weights_equal"] and found["resumed"]["metrics_equal"]
    assert found["packed"]["float32_against_padded"]["gradient"] < 1e-5
    assert found["compiled"]["against_eager"]["gradient"] < 1e-5
    assert (tmp_path / "out" / "metrics.jsonl").exists()


def test_a_call_without_time_starts_nothing(tmp_path):
    environment = os.environ | {"GPU_DAY_WORK": str(tmp_path / "work"), "GPU_DAY_SECONDS": "1"}
    call = [str(SCRIPT), str(tmp_path / "out"), "--smoke"]
    finished = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (75, "time is up before machine; call again\n")


def test_the_bundle(tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl.xz"
    text.write_bytes(b"x" * 1000)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "some-1.0-py3-none-any.whl").write_bytes(b"wheel")
    bundle = tmp_path / "bundle.tar.gz"
    gpu_day.pack_bundle(bundle, [text], None, wheels)
    with tarfile.open(bundle) as archive:
        names = archive.getnames()
    assert {"corpus/text.jsonl.xz", "wheels/some-1.0-py3-none-any.whl", "benchmarks/gpu_day.sh"} <= set(names)
    assert "bert_pipeline/training/pretrain.py" in names and not [name for name in names if "__pycache__" in name]
    monkeypatch.setattr(gpu_day, "MOST_BYTES", 500_000)
    with pytest.raises(SystemExit, match=r"bytes, and 500,000 may be carried; remedy: less of bert_pipeline/"):
        gpu_day.pack_bundle(bundle, [text], None, wheels)
    assert not bundle.exists()
