#!/bin/bash
# Run one machine's part of a multi-node training: torchrun on a job file that the pipeline has written.
#   train-node.sh .../pretrained_checkpoint/FINGERPRINT.partial/work/job.json
#
# SLURM, the TrainJob and the Indexed Job start it on each machine with torchrun's environment variables: PET_NNODES,
# PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT. On SIGTERM or SIGUSR1 the training saves a
# checkpoint after the current step. Exit codes (torchrun does not forward those of the training):
#    0  done: materialize pretrained_checkpoint, which writes the model and its card
#   75  stopped with a saved checkpoint: start again to resume (EX_TEMPFAIL)
#   78  an error that would recur: a wrong recipe, wrong data or a misconfigured machine (EX_CONFIG)
#   other: a process was lost; start all machines again, they resume from the newest checkpoint
#
# Precision and compilation come from BERT_PIPELINE_ACCELERATE_CONFIG (default: the packaged ddp_multinode), as on
# one machine. The micro-batch is measured here, because this machine may differ from the one that wrote the job;
# BERT_PIPELINE_PER_DEVICE_TOKENS sets it instead.
set -uo pipefail
job=$1
work=$(dirname "$job")
export BERT_PIPELINE_NODE=$PET_NODE_RANK
: "${BERT_PIPELINE_ACCELERATE_CONFIG:=ddp_multinode}"
export BERT_PIPELINE_ACCELERATE_CONFIG

# Each process checks the world size; torchrun waits for the processes as long as the launcher does.
export BERT_PIPELINE_WORLD_SIZE=$((PET_NNODES * PET_NPROC_PER_NODE))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600
# A replaced machine would restart its count of attempts and never rendezvous with the others, so all restart together.
export PET_MAX_RESTARTS=0

if [ "$PET_NODE_RANK" = 0 ]; then
  rm -f "$work/stopped" "$work/failed"
fi

trap 'exit 75' TERM USR1 # nothing to save yet; bash exits once the probe has ended
if [ "${BERT_PIPELINE_PER_DEVICE_TOKENS:-auto}" = auto ]; then
  BERT_PIPELINE_PER_DEVICE_TOKENS=$(python -m bert_pipeline.training.launch.probe "$job") || exit 78
  export BERT_PIPELINE_PER_DEVICE_TOKENS
fi

stopping=
setsid torchrun --module bert_pipeline.training.pretrain "$job" &
training=$!
trap 'stopping=yes; kill -TERM "$training" 2>/dev/null' TERM USR1

code=143
while kill -0 "$training" 2>/dev/null; do # a signal interrupts `wait`, not the training
  wait "$training"
  code=$?
done

if [ "$code" != 0 ] && [ -e "$work/failed" ]; then
  cat "$work/failed" >&2
  code=78
elif [ "$code" != 0 ] && { [ -n "$stopping" ] || [ -e "$work/stopped" ]; }; then
  code=75
fi
exit "$code"
