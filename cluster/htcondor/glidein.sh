#!/usr/bin/env bash
# What glidein.sub runs on each node: glidein.sh PROCESS MEET CPUS SECONDS jobs/….py key=value …
#
# Process 0 starts a head, writes MEET/address, runs the job and leaves MEET/done. The others wait for the address, join,
# and wait again if the head goes without having left `done`.
set -euo pipefail
exec 2>&1  # one log

rank=$1 meet=$2 cpus=$3 seconds=$4
shift 4
export PATH="${JETFOUNDRY_ENV:+$JETFOUNDRY_ENV/bin:}$PATH" PYTHONPATH="$PWD/platform"
export HOME="${HOME:-$_CONDOR_SCRATCH_DIR}" RAY_NODE_DIR="$_CONDOR_SCRATCH_DIR/ray"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$meet/token"
options=(--num-cpus="$cpus" --object-store-memory="${OBJECT_STORE_BYTES:-4000000000}")
children=()

# shellcheck disable=SC2329  # it is invoked: by trap
finish() {
  trap - EXIT
  test "$rank" != 0 || rm -f "$meet/address"
  kill "${children[@]}" 2>/dev/null || true
  wait "${children[@]}" 2>/dev/null || true
}
trap finish EXIT

if test "$rank" != 0; then
  trap 'exit 130' TERM  # back into the queue
  until test -e "$meet/done"; do
    if address=$(cat "$meet/address" 2>/dev/null); then
      bash ray_node.sh worker "$address" "${options[@]}" &
      children=($!)
      # Left to itself, a node waits a minute for a head that is gone.
      while kill -0 "${children[@]}" 2>/dev/null && test "$(cat "$meet/address" 2>/dev/null)" = "$address"; do sleep 2; done
      kill "${children[@]}" 2>/dev/null || true
      wait "${children[@]}" || true
    fi
    sleep 2
  done
  exit 0
fi

mkdir -p "$meet"
chmod 700 "$meet"
bash ray_node.sh token
bash ray_node.sh head "${options[@]}" &
children+=($!)
address=$(bash ray_node.sh address 300)
echo "$address" >"$meet/address.new"
mv "$meet/address.new" "$meet/address"

bash ray_node.sh job "$seconds" python "$@" ray.address="$address" &
job=$!
children+=("$job")
trap 'kill -TERM "$job"' TERM
while kill -0 "$job" 2>/dev/null; do
  wait "$job" || true  # a trapped signal ends `wait`, not the job
done
status=0
wait "$job" || status=$?
test "$status" = 130 || touch "$meet/done"
exit "$status"
