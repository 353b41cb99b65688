#!/usr/bin/env bash
# For `source`, by the scripts that run the service against Vault: finds the programs, starts
# a development server and the service, sends requests, and cleans up at the end.

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NAME=${0##*/}
TARGET=${CARGO_TARGET_DIR:-$SCRIPTS/../target}
service_pid='' own_vault=no before_the_end=true

say() { echo "$NAME: $*" >&2; }
die() {
    say "$*"
    exit 1
}

# usage: the comment at the head of the script
usage() { sed -n '2,/^set -/{/^#/!d;s/^# \{0,1\}//;p;}' "$0"; }

# parse_options "--name ..." ARGUMENT...: sets the variable that each option names
parse_options() {
    local known=" $1 "
    shift
    while (($#)); do
        case $1 in
        -h | --help)
            usage
            exit
            ;;
        *)
            if [[ $known != *" $1 "* || -z ${2:-} ]]; then
                say "$1: no such option, or its value is missing"
                usage >&2
                exit 2
            fi
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        esac
    done
}

# server_program: prints the path of OpenBao or Vault
server_program() {
    command -v bao || command -v vault || {
        [[ -x $TARGET/test-tools/bao ]] && echo "$TARGET/test-tools/bao"
    } || die 'there is no bao or vault on the PATH; scripts/install-test-deps provides one'
}

# find_program [PATH]: sets program, by default the one that cargo has built
find_program() {
    program=${1:-${CREDENTIAL_VAULT_BIN:-$TARGET/debug/credential-vault}}
    [[ -x $program ]] || die "there is no $program; run cargo build, or name another with --bin"
    command -v curl >/dev/null || die 'curl is missing'
}

# make_place: a directory that is removed at the end, after the command $before_the_end
make_place() {
    place=$(mktemp -d "${TMPDIR:-/tmp}/vault-script.XXXXXX")
    socket=$place/run/vault.sock
    service_log=$place/service.log
    trap the_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
}

the_end() {
    # A second signal must not cut the cleaning short.
    trap '' INT TERM HUP
    "$before_the_end" || true
    [[ -z $service_pid ]] || stop_service || true
    [[ $own_vault == no ]] || "$SCRIPTS/vault_dev_setup.sh" --state "$place/vault" --stop 2>/dev/null || true
    rm -rf -- "$place"
}

# set_up_vault: a development server of the script's own, whatever the environment names
set_up_vault() {
    local variable exports
    for variable in "${!VAULT_@}"; do unset "$variable"; done
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
        if ask GET /health && [[ $status == 200 ]]; then return; fi
        kill -0 "$service_pid" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$service_log" >&2
    die 'the service did not start'
}

# stop_service: the exit status is the service's
stop_service() {
    local pid=$service_pid result=0
    service_pid=''
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" || result=$?
    return "$result"
}

# ask METHOD PATH [BODY]: sets status and body
ask() {
    local answer options=(--request "$1")
    if [[ $1 == HEAD ]]; then options=(--head); fi
    if (($# > 2)); then options+=(--header 'Content-Type: application/json' --data-binary @-); fi
    status=000 body=''
    answer=$(curl -q --silent --show-error --max-time 40 --unix-socket "$socket" \
        "${options[@]}" --write-out '\n%{http_code}' "http://localhost$2" 2>&1 <<<"${3:-}") || {
        body=$answer
        return 1
    }
    status=${answer##*$'\n'}
    # shellcheck disable=SC2034 # the caller reads it
    body=${answer%$'\n'*}
}
