#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any size: requests it as a queued resource, installs this checkout on every worker, runs
# the same `uvos train` on all workers, shows the log, and deletes the slice.
#
#   launch/tpu_pod.sh [--dry-run] [--NAME=VALUE ...] create|install|run|logs|delete|all [-- further arguments of uvos train]
#
# Settings, as environment variables or as --lower-case=value, with defaults in parentheses:
#   PROJECT      Google Cloud project (required)
#   ZONE         zone, such as us-central2-b (required)
#   NAME         name of the slice and of its request      (uvos)
#   ACCELERATOR  type of the slice, such as v4-32          (v4-8)
#   RUNTIME      software version of the TPU VMs           (tpu-ubuntu2204-base)
#   CONFIG       configuration for uvos train              (adnet)
#   WORKDIR      folder shared by all workers, such as a mounted bucket (required for run)
#   DATA_DIR     converted datasets on every worker        (none)
#   POLL         seconds between checks of the request     (30)
#
# --dry-run prints every command, quoted for the shell, and runs none. `all` is create, install, run, logs.
# After a preempted slice is back, run `install` and `run` again; training resumes from its last checkpoint.
set -euo pipefail

PROJECT="${PROJECT:-}"
ZONE="${ZONE:-}"
NAME="${NAME:-uvos}"
ACCELERATOR="${ACCELERATOR:-v4-8}"
RUNTIME="${RUNTIME:-tpu-ubuntu2204-base}"
CONFIG="${CONFIG:-adnet}"
WORKDIR="${WORKDIR:-}"
DATA_DIR="${DATA_DIR:-}"
POLL="${POLL:-30}"
DRY_RUN=0

fail() {
  echo "tpu_pod.sh: $*" >&2
  exit 2
}

# Prints a command quoted for the shell; runs it unless this is a dry run.
run() {
  local line
  line="$(printf '%q ' "$@")"
  echo "${line% }"
  if [[ "$DRY_RUN" == 0 ]]; then
    "$@"
  fi
}

tpu() {
  gcloud_tpu=(gcloud compute tpus "$@" "--project=$PROJECT" "--zone=$ZONE")
}

# Runs a shell command on workers: on_workers all|NUMBER COMMAND.
on_workers() {
  tpu tpu-vm ssh "$NAME" "--worker=$1" "--command=$2"
  run "${gcloud_tpu[@]}"
}

create() {
  tpu queued-resources create "$NAME" "--node-id=$NAME" "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME"
  run "${gcloud_tpu[@]}"
  tpu queued-resources describe "$NAME" "--format=value(state.state)"
  if [[ "$DRY_RUN" == 1 ]]; then
    run "${gcloud_tpu[@]}"
    return
  fi
  local state
  while true; do
    state="$("${gcloud_tpu[@]}")"
    echo "$(date +%H:%M:%S) $NAME is $state"
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDED) fail "the request for $NAME is $state; run 'delete', then 'create'" ;;
    esac
    sleep "$POLL"
  done
}

# Copies all files that git tracks to all workers and installs them there.
install() {
  local root archive
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  archive="${TMPDIR:-/tmp}/$NAME-uvos.tar.gz"
  run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
  tpu tpu-vm scp "$archive" "$NAME:uvos.tar.gz" --worker=all
  run "${gcloud_tpu[@]}"
  # The standard TPU images have Python 3.10, which JAX no longer supports.
  on_workers all "set -e; rm -rf uvos && mkdir uvos && tar -xzf uvos.tar.gz -C uvos; python=\$(command -v python3.13 || command -v python3.12 || command -v python3.11 || echo python3.11); command -v \$python > /dev/null || { sudo apt-get update -qq && sudo apt-get install -y -qq python3.11-venv; }; \$python -m venv uvos-venv && uvos-venv/bin/pip install --quiet './uvos[tpu,train]'"
}

# Runs the same command on every worker; JAX connects the processes. Training continues when the connection closes.
run_training() {
  [[ -n "$WORKDIR" ]] || fail "set WORKDIR to a folder shared by all workers"
  local arguments=(--config "$CONFIG" --workdir "$WORKDIR")
  if [[ -n "$DATA_DIR" ]]; then
    arguments+=(--data-dir "$DATA_DIR")
  fi
  arguments+=("${MORE[@]+"${MORE[@]}"}")
  local quoted
  quoted="$(printf '%q ' "${arguments[@]}")"
  # Braces: a background process that holds the connection's files open would make ssh wait for it.
  on_workers all "cd uvos && { nohup ../uvos-venv/bin/uvos train ${quoted% } > ~/uvos.log 2>&1 < /dev/null & }"
}

logs() {
  on_workers 0 "tail -n 100 -F uvos.log"
}

delete() {
  tpu queued-resources delete "$NAME" --force --quiet
  run "${gcloud_tpu[@]}"
}

COMMAND=""
MORE=()
while (($#)); do
  case "$1" in
    --dry-run) DRY_RUN=1 ;;
    --project=* | --zone=* | --name=* | --accelerator=* | --runtime=* | --config=* | --workdir=* | --data-dir=* | --poll=*)
      setting="${1%%=*}"
      setting="${setting#--}"
      setting="${setting//-/_}"
      printf -v "${setting^^}" '%s' "${1#*=}"
      ;;
    --)
      shift
      MORE=("$@")
      break
      ;;
    -h | --help)
      sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    create | install | run | logs | delete | all)
      [[ -z "$COMMAND" ]] || fail "give one command, not both $COMMAND and $1"
      COMMAND="$1"
      ;;
    *) fail "unknown argument '$1'; see $0 --help" ;;
  esac
  shift
done

[[ -n "$COMMAND" ]] || fail "give a command: create, install, run, logs, delete or all"
[[ -n "$PROJECT" ]] || fail "set PROJECT to your Google Cloud project"
[[ -n "$ZONE" ]] || fail "set ZONE, such as us-central2-b"
[[ "$DRY_RUN" == 1 ]] || command -v gcloud > /dev/null || fail "gcloud is not installed; --dry-run prints the commands without it"

case "$COMMAND" in
  run) run_training ;;
  all)
    [[ -n "$WORKDIR" ]] || fail "set WORKDIR to a folder shared by all workers"
    create
    install
    run_training
    logs
    ;;
  *) "$COMMAND" ;;
esac
