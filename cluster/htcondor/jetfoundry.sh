#!/usr/bin/env bash
# What jetfoundry.sub runs on the node: jetfoundry.sh SECONDS jobs/….py key=value …
#
# The private Ray is the job's child and ends with it. It listens on this node only, with a secret of its own.
set -euo pipefail
exec 2>&1  # one log

export PATH="${JETFOUNDRY_ENV:+$JETFOUNDRY_ENV/bin:}$PATH" PYTHONPATH="$PWD/platform"
export HOME="${HOME:-$_CONDOR_SCRATCH_DIR}" RAY_TMPDIR="$_CONDOR_SCRATCH_DIR"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$_CONDOR_SCRATCH_DIR/token" RAY_NODE_DIR=/tmp/unused
bash ray_node.sh token

exec bash ray_node.sh job "$1" python "${@:2}"
