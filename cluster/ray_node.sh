#!/usr/bin/env bash
# One node's Ray beside other people's: what slurm.sh, htcondor/ and onprem.yaml share.
#
#   ray_node.sh token                       makes the cluster's secret, $RAY_AUTH_TOKEN_PATH, unless it is there
#   ray_node.sh port                        prints a free port
#   ray_node.sh head [options]              runs the head until it is told to end, at $RAY_NODE_PORT or a free port; options
#                                           are those of `ray start`
#   ray_node.sh worker HOST:PORT [options]  runs a worker of that head until it is told to end
#   ray_node.sh address SECONDS             waits for the head that has this folder, prints its HOST:PORT
#   ray_node.sh nodes HOST:PORT N SECONDS   waits until the cluster has N nodes
#   ray_node.sh restart head|worker …       in the background, after ending what the last `restart` here started
#   ray_node.sh stop                        ends what the last `restart` here started
#   ray_node.sh job SECONDS command …       runs a job that the batch system may end: ten minutes before SECONDS are over, and
#                                           at SIGTERM, it is told to write a checkpoint; exit code 130 if it then did and is to
#                                           be queued again, 0 if it ended early because somebody asked it to (a file `stop`)
#
# - Every port is a free one that the kernel gives: Ray's fixed ones (6379, 8265, 10001, 10002-19999, 44227, 52365)
#   collide with another Ray on the machine.
# - A Ray is ended by the id of its `ray start --block`, which takes its children with it. `ray stop` would end every
#   Ray of this user on the machine.
# - Dashboard and jobs API listen on 127.0.0.1 alone: come by an SSH tunnel. What the nodes use among themselves, and
#   Ray's client server, listen on the node's address, as they must, and ask for the token. Prometheus's pages of figures
#   listen there, too, and ask nobody: Ray has nothing else.
set -euo pipefail

export RAY_AUTH_MODE=token MALLOC_ARENA_MAX=1  # one heap a process: workers that run many trials grew without end
: "${RAY_AUTH_TOKEN_PATH:?wanted: a file that only you can read and all nodes see}"
: "${RAY_NODE_DIR:?wanted: a folder on a local disk for this cluster alone}"
if ((${#RAY_NODE_DIR} > 40)); then  # Ray's sockets lie below it, and a socket's path has at most 107 bytes
  echo "RAY_NODE_DIR=$RAY_NODE_DIR is longer than 40 characters" >&2
  exit 2
fi

PORTS=(--node-manager-port=0 --object-manager-port=0 --min-worker-port=0 --max-worker-port=0 --metrics-export-port=0
  --dashboard-agent-listen-port=0 --dashboard-agent-grpc-port=0 --runtime-env-agent-port=0)

own_folder() {  # chmod fails if another user made it before us, where all may write
  mkdir -p "$RAY_NODE_DIR" && chmod 700 "$RAY_NODE_DIR"
}

free_port() {
  python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

token() {
  test ! -s "$RAY_AUTH_TOKEN_PATH" || return 0
  mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
  (umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH")
}

head() {
  own_folder
  rm -f "$RAY_NODE_DIR/ray_current_cluster"  # of an earlier head: `address` waits for the new one
  local ip port="${RAY_NODE_PORT:-$(free_port)}"
  ip=$(python -c 'import ray; print(ray.util.get_node_ip_address())')
  DASHBOARD_METRIC_PORT=$(free_port)
  export DASHBOARD_METRIC_PORT
  export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0  # with its head the cluster ends: nothing to move elsewhere
  export RAY_ADDRESS="$ip:$port"  # else Ray Train's own actors look for a Ray on the machine, and may find two
  exec ray start --head --block --node-ip-address="$ip" --port="$port" "${PORTS[@]}" --dashboard-host=127.0.0.1 \
    --dashboard-port=0 --ray-client-server-port="$(free_port)" --temp-dir="$RAY_NODE_DIR" --disable-usage-stats "$@"
}

worker() {
  own_folder
  export RAY_ADDRESS="$1"
  exec ray start --block --address="$1" "${PORTS[@]}" --temp-dir="$RAY_NODE_DIR" --disable-usage-stats "${@:2}"
}

address() {
  local end=$((SECONDS + $1))
  until test -s "$RAY_NODE_DIR/ray_current_cluster"; do
    if ((SECONDS > end)); then
      echo "no Ray head in $RAY_NODE_DIR after $1 s" >&2
      return 1
    fi
    sleep 0.5
  done
  cat "$RAY_NODE_DIR/ray_current_cluster"
  echo
}

nodes() {
  timeout "$3" python - "$1" "$2" <<'PYTHON' || { echo "the cluster at $1 has no $2 nodes after $3 s" >&2; return 1; }
import sys, time, ray
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(1)
PYTHON
}

mine() {  # the process that `restart` started still runs; ids are used again, so look at what it is
  grep -qsF -- "--temp-dir=$RAY_NODE_DIR" "/proc/$1/cmdline"
}

stop() {
  local pid end=$((SECONDS + 40))
  pid=$(cat "$RAY_NODE_DIR/pid" 2>/dev/null) || return 0
  ! mine "$pid" || kill "$pid"
  while mine "$pid"; do
    ((SECONDS < end)) || kill -KILL "$pid"
    sleep 0.5
  done
  rm -f "$RAY_NODE_DIR/pid"
}

restart() {
  local log="$RAY_NODE_DIR/node.log" pid
  stop
  own_folder
  rm -f "$log"  # the last start's says the same words that are waited for below
  nohup setsid bash "${BASH_SOURCE[0]}" "$@" </dev/null >"$log" 2>&1 &
  pid=$!
  echo "$pid" >"$RAY_NODE_DIR/pid"
  until grep -qs "Ray runtime started" "$log"; do
    if ! kill -0 "$pid" 2>/dev/null; then
      cat "$log" >&2
      return 1
    fi
    sleep 0.5
  done
}

job() {
  local limit=$(($1 > 1200 ? $1 - 600 : $1)) pid status=0 again=
  # --foreground: the signal is for the driver, not for the processes of the Ray that it started.
  timeout --foreground --preserve-status --signal=USR1 "$limit" "${@:2}" &
  pid=$!
  trap 'again=yes; kill -TERM "$pid"' TERM
  while kill -0 "$pid" 2>/dev/null; do
    wait "$pid" || true  # a trapped signal ends `wait`, not the job
  done
  wait "$pid" || status=$?
  ((SECONDS < limit)) || again=yes
  if ((status == 130)) && test -z "$again"; then
    echo "ended early, as it was asked to; submit again to go on"
    status=0
  fi
  return "$status"
}

case "${1:-}" in
  token | head | worker | address | nodes | restart | stop | job) "$@" ;;
  port) free_port ;;
  *)
    sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
