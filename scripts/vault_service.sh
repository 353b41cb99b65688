#!/usr/bin/env bash
# What the scripts that try the service against Vault share: a private directory, a
# development server of one's own, the service, requests to it, and the end of them all.
# For `source`, from a script that has set -euo pipefail.

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NAME=${0##*/}
service_pid='' own_vault=no

say() { echo "$NAME: $*" >&2; }
die() {
    say "$*"
    exit 1
}

# usage: the comment at the head of the script
usage() { sed -n '2,/^set -/{/^#/!d;s/^# \{0,1\}//;p;}' "$0"; }

# find_program [PATH]: sets program, by default the one that cargo has built
find_program() {
    program=${1:-${CREDENTIAL_VAULT_BIN:-${CARGO_TARGET_DIR:-$SCRIPTS/../target}/debug/credential-vault}}
    [[ -x $program ]] || die "there is no $program; run cargo build, or name another by --bin"
    command -v curl >/dev/null || die 'curl is missing'
}

# make_place [COMMAND]: a directory that is gone at the end, however it comes; COMMAND runs
# before
make_place() {
    place=$(mktemp -d "${TMPDIR:-/tmp}/vault-script.XXXXXX")
    socket=$place/run/vault.sock
    service_log=$place/service.log
    before_the_end=${1:-true}
    trap the_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
}

the_end() {
    # A second signal must not cut the tidying short.
    trap '' INT TERM HUP
    "$before_the_end" || true
    [[ -z $service_pid ]] || stop_service || true
    [[ $own_vault == no ]] || "$SCRIPTS/vault_dev_setup.sh" --state "$place/vault" --stop 2>/dev/null || true
    rm -rf -- "$place"
}

# A server of one's own, whatever the environment says of another.
set_up_vault() {
    local variable exports
    for variable in "${!VAULT_@}"; do
        # That one is the set-up's.
        [[ $variable == VAULT_DEV_IMAGE ]] || unset "$variable"
    done
    own_vault=yes
    exports=$("$SCRIPTS/vault_dev_setup.sh" --state "$place/vault") || die 'no server could be set up'
    eval "$exports"
}

# start_service LEVEL: returns when it answers
start_service() {
    local tries
    RUST_LOG=$1 IF_VAULT_BACKEND=hashicorp "$program" serve \
        --socket "$socket" --data-dir "$place/data" </dev/null >>"$service_log" 2>&1 &
    service_pid=$!
    for ((tries = 0; tries < 200; tries++)); do
        if request GET /health && [[ $status == 200 ]]; then return; fi
        kill -0 "$service_pid" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$service_log" >&2
    die 'the service did not start'
}

# The exit status is the service's.
stop_service() {
    local pid=$service_pid result=0
    service_pid=''
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" || result=$?
    return "$result"
}

# request METHOD PATH: sets status and body; a PUT's body comes by standard input
request() {
    local answer options=(--request "$1")
    if [[ $1 == HEAD ]]; then options=(--head); fi
    if [[ $1 == PUT ]]; then options+=(--header 'Content-Type: application/json' --data-binary @-); fi
    status=000 body=''
    answer=$(curl -q --silent --show-error --max-time 40 --unix-socket "$socket" \
        "${options[@]}" --write-out '\n%{http_code}' "http://localhost$2" 2>&1) || {
        body=$answer
        return 1
    }
    status=${answer##*$'\n'}
    # shellcheck disable=SC2034 # who asked looks at it
    body=${answer%$'\n'*}
}
