#!/bin/bash
# One machine's share of a training on several: torchrun on a job that the pipeline has written.
#   train-node.sh .../pretrained_checkpoint/FINGERPRINT.partial/work/job.json
#
# SLURM, the TrainJob and the Indexed Job start it on each machine, with torchrun's own environment: PET_NNODES,
# PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT. SIGTERM and SIGUSR1 make the training save a
# checkpoint after the step under way. Exit codes, which torchrun does not hand on:
#    0  done: materialize pretrained_checkpoint, which writes the model and its card
#   75  stopped, and saved: start again, it goes on (EX_TEMPFAIL)
#   78  an error that would come again: a recipe, data or a machine that is not as it should be (EX_CONFIG)
#   else: a process was lost; start all machines again, they go on from the newest checkpoint
set -uo pipefail
job=$1
work=$(dirname "$job")

# The processes make sure that they are as many; torchrun waits as long for them as the launcher does.
export BERT_PIPELINE_WORLD_SIZE=$((PET_NNODES * PET_NPROC_PER_NODE))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600
# A machine that was replaced would count its attempts anew, and never meet the others: all start again together.
export PET_MAX_RESTARTS=0

if [ "$PET_NODE_RANK" = 0 ]; then
  rm -f "$work/stopped" "$work/failed"
fi

stopping=
setsid torchrun --module bert_pipeline.training.pretrain "$job" &
training=$!
trap 'stopping=yes; kill -TERM "$training" 2>/dev/null' TERM USR1

code=143
while kill -0 "$training" 2>/dev/null; do # a signal ends `wait`, not the training
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
