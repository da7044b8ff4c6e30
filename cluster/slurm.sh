#!/usr/bin/env bash
# A job on Slurm: a Ray over all nodes of the allocation, for this job alone, on nodes that others may share.
#
#   sbatch cluster/slurm.sh jobs/pretrain.py jobs/recipes/sophon.yaml data=/shared/shards run=/shared/runs/sophon \
#       workers.num_workers=8
#   squeue --me; tail -f jetfoundry-JOBID.log      # status; the log
#   touch /shared/runs/sophon/stop                 # end with a checkpoint; the same sbatch continues
#   scancel JOBID                                  # end at once; the same sbatch continues from the last checkpoint
#
# Submit from the checkout, which must lie where all nodes see it, with its .venv (`make test` makes one) or with
# JETFOUNDRY_ENV=<another environment>. Give your account and partition (`sbatch -A … -p …`).
#
# Sizes: two nodes of four GPUs train the Sophon recipe with 8 workers; each reserves 4 CPUs, the other 16 of a
# node ingest and evaluate. Options of sbatch come before the script's name: `sbatch -N 1 --gpus-per-node=0 …` is a job
# on CPUs. Cost: 8 GPU-hours for each hour, of your allocation; the nodes are held to the job's end, idle or not.
#
# Ten minutes before the time limit the run writes a checkpoint and the job is queued again; so it is after a lost node.
# The driver joins Ray by `ray.address`, and nothing of Ray outlives the job. Not `ray symmetric-run`: it refuses nodes
# on which another Ray runs, and ends with a `ray stop`, which would end the Ray of your other jobs on the node.
#SBATCH --job-name=jetfoundry
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=jetfoundry-%j.log
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
export PATH="${JETFOUNDRY_ENV:-$SLURM_SUBMIT_DIR/.venv}/bin:$PATH" PYTHONPATH="$SLURM_SUBMIT_DIR/platform"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.jetfoundry/slurm-$SLURM_JOB_ID.token"  # HOME: on all nodes
export RAY_NODE_DIR="${RAY_NODE_DIR:-/tmp/jf-$SLURM_JOB_ID}"                                  # on each node's own disk
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0  # a Ray is told to end when its job is over: nothing to wait for
NODE=(bash cluster/ray_node.sh)
ONE_EACH=(--overlap --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK")
RESOURCES=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
  --object-store-memory="${OBJECT_STORE_BYTES:-8000000000}")  # by itself Ray takes 30 % of the node, others' part too

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
steps=()

finish() {
  trap - EXIT
  kill "${steps[@]}" 2>/dev/null || true  # srun hands it on to `ray start --block`, which takes its children with it
  wait "${steps[@]}" 2>/dev/null || true
  srun "${ONE_EACH[@]}" --nodes="${#hosts[@]}" rm -rf -- "$RAY_NODE_DIR" || true
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap finish EXIT
trap 'exit 143' TERM

"${NODE[@]}" token
dashboard=$("${NODE[@]}" port)
srun "${ONE_EACH[@]}" --nodes=1 --nodelist="${hosts[0]}" \
  "${NODE[@]}" head --dashboard-port="$dashboard" "${RESOURCES[@]}" &
steps+=($!)
address=$("${NODE[@]}" address 300)  # this script runs on the first node, as the head does
if ((${#hosts[@]} > 1)); then
  others=$(IFS=,; echo "${hosts[*]:1}")
  srun "${ONE_EACH[@]}" --nodes=$((${#hosts[@]} - 1)) --nodelist="$others" \
    "${NODE[@]}" worker "$address" "${RESOURCES[@]}" &
  steps+=($!)
fi
"${NODE[@]}" nodes "$address" "${#hosts[@]}" 600
echo "Ray on ${#hosts[@]} nodes; its dashboard: ssh -L 8265:127.0.0.1:$dashboard ${hosts[0]}"

python "$@" ray.address="$address" &
job=$!
again=
trap 'again=yes; kill -USR1 "$job"' USR1
trap 'kill -TERM "$job"' TERM
while kill -0 "$job" 2>/dev/null; do
  wait "$job" || true  # a trapped signal ends `wait`, not the job
done
status=0
wait "$job" || status=$?
finish
if test "$again" && ((status == 130)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
