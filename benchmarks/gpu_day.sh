#!/usr/bin/env bash
# Everything to find out on a GPU, in calls of at most nine minutes:
#
#     benchmarks/gpu_day.sh OUT [--smoke]
#
# OUT receives one JSON file and one log per step as soon as it ends. A call resumes where the last one stopped, as long
# as OUT and the work folder (GPU_DAY_WORK, else gpu-day in the current folder) are kept. Exit codes: 0 all steps have
# ended, 75 time is up, call again; 1 all have ended, and those in OUT/*.failed with an error.
# The machine needs torch for CUDA, accelerate, numba, pyarrow and the like; what else it lacks, the bundle brings:
#
#     python3 -m pip install --no-index --no-deps --target site wheels/*.whl; export PYTHONPATH=$PWD/site
#
# The text is corpus/*.jsonl.*, the task's data blurb/BC5CDR-chem, both below BERT_PIPELINE_DATA (else the bundle).
# --smoke: the same on a CPU at a tiny size, on generated text.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
out=$1
mode=${2:-}
work=${GPU_DAY_WORK:-gpu-day}
deadline=$((SECONDS + ${GPU_DAY_SECONDS:-540}))
export BERT_PIPELINE_DATA=${BERT_PIPELINE_DATA:-$PWD} PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [[ $mode == --smoke ]]; then
    device=cpu small=smoke model=smoke task=sample-chem precision=float32
    export BERT_PIPELINE_ACCELERATE_CONFIG=cpu BERT_PIPELINE_RECIPES="$PWD/benchmarks/recipes"
    tuning=(--seeds 1 --num-epochs 1)
else
    device=cuda small=small model=crammed task=BC5CDR-chem precision=bf16
    export BERT_PIPELINE_ACCELERATE_CONFIG=single_gpu
    tuning=()
fi
mkdir -p "$out" "$work"

step() { # NAME COMMAND...: run a command once, with the time that is left; another call repeats it if time runs out
    local name=$1 code=0 left=$((deadline - SECONDS - 30))
    shift
    [[ -e $out/$name.done || -e $out/$name.failed ]] && return
    ((left > 20)) || { echo "time is up before $name; call again"; exit 75; }
    echo "$name: $left s left"
    timeout --signal=TERM --kill-after=25 "$left" "$@" >"$out/$name.json" 2>>"$out/$name.log" || code=$?
    case $code in
        0) touch "$out/$name.done" ;;
        75 | 124 | 137 | 143) echo "$name is unfinished; call again"; exit 75 ;;
        *) echo "$name failed: exit code $code, see $out/$name.log"; mv "$out/$name.json" "$out/$name.failed" ;;
    esac
}

check() { step "$1" python -m benchmarks.gpu_day "$1" "$work/checks" --device "$device" --recipe "$small"; }
stage() { # NAME COMMAND OPTIONS...
    step "$1" python -m bert_pipeline.cli "$2" --recipe "$model" "${@:3}" --out "$work/$1" --json
}

# Correctness, then the model, which may take many calls, then speed.
check machine
check prepare
check packed
check compiled
rm -rf "$work/checks/whole" "$work/checks/parts" "$work/checks/"*.partial
check resumed
check probe
stage raw_corpus raw-corpus
stage tokenizer tokenizer --raw-corpus "$work/raw_corpus"
stage nsp_dataset nsp-dataset --raw-corpus "$work/raw_corpus" --tokenizer "$work/tokenizer"
stage masked_dataset masked-dataset --tokenizer "$work/tokenizer" --nsp-dataset "$work/nsp_dataset"
stage pretrained_checkpoint pretrain --tokenizer "$work/tokenizer" --nsp-dataset "$work/nsp_dataset" \
    --masked-dataset "$work/masked_dataset"
step evaluate python -m bert_pipeline.cli evaluate --model "$work/pretrained_checkpoint" --task "$task" \
    --out "$work/evaluation" --json "${tuning[@]}"
[[ $mode == --smoke ]] || step speed python -m benchmarks.training --recipe bert-base --device "$device" \
    --precision "$precision" --json
cp "$work/pretrained_checkpoint/metrics.jsonl" "$out/" 2>/dev/null
! compgen -G "$out/*.failed" >/dev/null
