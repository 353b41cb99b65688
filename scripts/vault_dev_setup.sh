#!/usr/bin/env bash
# A Vault server for development, in memory: KV v2 at secret/, the policy that the service
# needs and no more, and an AppRole whose tokens live 20 s and, however renewed, 60 s.
#
#   eval "$(scripts/vault_dev_setup.sh)"     starts it; sets VAULT_ADDR, VAULT_ROLE_ID and
#                                            VAULT_SECRET_ID; once more tells them again
#   scripts/vault_dev_setup.sh --stop        ends it, and all that was in it is gone
#
#   --port N       listen there (default: any free port), on the loopback interface only
#   --state DIR    where process id, log and root token are kept: a directory of its own,
#                  mode 0700 (default: in XDG_RUNTIME_DIR, else in /tmp)
#
# It is `bao` or `vault` on the PATH, else a container: docker, image VAULT_DEV_IMAGE.
# Only export lines go to standard output. No secret is in an argument, where `ps` shows it.
set -euo pipefail

NAME=vault_dev_setup.sh
IMAGE=${VAULT_DEV_IMAGE:-openbao/openbao:2.6}
POLICY=intentframe
ROLE=intentframe

say() { echo "$NAME: $*" >&2; }
die() {
    say "$*"
    exit 1
}

usage() { sed -n '2,/^set -/{/^#/!d;s/^# \{0,1\}//;p;}' "$0"; }

default_state() {
    if [[ -n ${XDG_RUNTIME_DIR:-} ]]; then
        echo "$XDG_RUNTIME_DIR/intentframe-dev-vault"
    else
        echo "/tmp/intentframe-dev-vault-$EUID"
    fi
}

wanted_port='' state='' stop=no
while (($#)); do
    case $1 in
    --port | --state)
        [[ -n ${2:-} ]] || die "$1 needs a value"
        if [[ $1 == --port ]]; then wanted_port=$2; else state=$2; fi
        shift 2
        ;;
    --stop)
        stop=yes
        shift
        ;;
    -h | --help)
        usage
        exit
        ;;
    *)
        say "there is no option $1"
        usage >&2
        exit 2
        ;;
    esac
done
state=${state:-$(default_state)}
if [[ -n $wanted_port && ! $wanted_port =~ ^[1-9][0-9]{0,4}$ ]]; then
    say "--port is a number from 1 to 65535"
    exit 2
fi

# --- what is running already -------------------------------------------------------------

# In /tmp anybody could have laid a directory of this name.
check_state() {
    if [[ -L $state || ! -d $state || ! -O $state ]]; then
        die "$state is not a directory of yours; remove it, or choose another by --state"
    fi
}

saved() { cat "$state/$1" 2>/dev/null || true; }

# Its arguments are looked at too: a process id is given again to somebody else.
process_runs() {
    local pid port
    pid=$(saved pid) port=$(saved port)
    [[ -n $pid && -n $port ]] &&
        ps -ww -o args= -p "$pid" 2>/dev/null |
        grep -qF -- "server -dev -dev-no-store-token -dev-listen-address=127.0.0.1:$port"
}

container_runs() {
    local container
    container=$(saved container)
    [[ -n $container ]] && [[ $(docker inspect --format '{{.State.Running}}' "$container" 2>/dev/null) == true ]]
}

stop_server() {
    local pid tries
    if process_runs; then
        pid=$(saved pid)
        kill -TERM "$pid" 2>/dev/null || true
        for ((tries = 0; tries < 100; tries++)); do
            process_runs || break
            sleep 0.05
        done
        if process_runs; then kill -KILL "$pid" 2>/dev/null || true; fi
    fi
    if [[ -s $state/container ]]; then
        docker rm --force --volumes "$(saved container)" >/dev/null 2>&1 || true
    fi
    rm -rf -- "$state"
}

if [[ $stop == yes ]]; then
    if [[ ! -e $state && ! -L $state ]]; then
        say 'there is none to stop'
        exit
    fi
    check_state
    stop_server
    say 'stopped'
    exit
fi

command -v curl >/dev/null || die 'curl is missing'

if ! mkdir -m 700 -- "$state" 2>/dev/null; then
    [[ -e $state || -L $state ]] || die "$state cannot be made"
    check_state
    if process_runs || container_runs; then
        [[ -s $state/exports ]] || die "another set-up is under way; if not, use --stop"
        [[ -z $wanted_port || $wanted_port == "$(saved port)" ]] ||
            die "it runs already, on port $(saved port); --stop comes first"
        say 'it runs already'
        cat "$state/exports"
        exit
    fi
    [[ -s $state/exports ]] || die "another set-up is under way; if not, use --stop"
    # What one left behind that was killed, or that ended with the machine.
    stop_server
    mkdir -m 700 -- "$state" || die "$state cannot be made"
fi
umask 077

done_well=no
trap '[[ $done_well == yes ]] || stop_server' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- the server --------------------------------------------------------------------------

root_token=dev-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
printf '%s\n' "$root_token" >"$state/root-token"
address=''

# ask METHOD PATH [BODY]: the answer to root's request, and 0 if it is a success. The token
# goes by standard input; neither ~/.curlrc nor a proxy has a part in it.
ask() {
    local answer
    answer=$(printf 'header = "X-Vault-Token: %s"\n' "$root_token" |
        curl -q --config - --silent --show-error --noproxy '*' --max-time 10 \
            --request "$1" ${3:+--data "$3"} --write-out '\n%{http_code}' "$address/v1/$2" 2>&1) || {
        printf '%s' "$answer"
        return 1
    }
    printf '%s' "${answer%$'\n'*}"
    [[ ${answer##*$'\n'} == 2?? ]]
}

# must METHOD PATH [BODY]: the same, and the end if it is refused
must() {
    local answer
    answer=$(ask "$@") || die "$1 $2 was refused: $answer"
    printf '%s' "$answer"
}

# The mount is asked for, since it is the last thing that a dev server gets ready.
is_ready() { ask GET secret/config >/dev/null; }

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# run_process PROGRAM: 0 when it is ready, 1 when its port has been taken by another
run_process() {
    local tries
    printf '%s\n' "$port" >"$state/port"
    # With a process group of its own, an interrupt at the terminal does not end it.
    set -m
    (
        # Settings of the user's client are not the server's.
        for variable in "${!VAULT_@}" "${!BAO_@}"; do unset "$variable"; done
        export BAO_DEV_ROOT_TOKEN_ID=$root_token VAULT_DEV_ROOT_TOKEN_ID=$root_token
        exec "$1" server -dev -dev-no-store-token "-dev-listen-address=127.0.0.1:$port" \
            </dev/null >"$state/log" 2>&1
    ) &
    printf '%s\n' "$!" >"$state/pid"
    disown
    set +m
    address=http://127.0.0.1:$port
    for ((tries = 0; tries < 300; tries++)); do
        if is_ready; then return; fi
        # A moment passes before the process has these arguments.
        if ((tries > 20)) && ! process_runs; then break; fi
        sleep 0.1
    done
    if process_runs; then die "$1 was not ready within 30 s"; fi
    grep -q 'address already in use' "$state/log" && return 1
    # The tokens are in the log too.
    die "$1 has ended: $(grep -vi 'token\|key' "$state/log" | tail -n 5)"
}

start_process() {
    local tries
    port=$wanted_port
    for ((tries = 0; tries < 20; tries++)); do
        [[ -n $wanted_port ]] || port=$((20000 + RANDOM % 12000))
        if port_is_free "$port" && run_process "$1"; then return; fi
        [[ -z $wanted_port ]] || die "port $wanted_port is taken"
    done
    die 'no free port was found'
}

start_container() {
    local tries
    docker info >/dev/null 2>&1 || die 'docker is there, but its daemon does not answer (docker info)'
    # `--env NAME` takes the value from the environment. Not by the image's own entry point,
    # which makes an argument of it. OpenBao's image has the program by both names.
    BAO_DEV_ROOT_TOKEN_ID=$root_token VAULT_DEV_ROOT_TOKEN_ID=$root_token \
        docker run --detach --rm --init --cidfile "$state/container" --cap-add IPC_LOCK \
        --publish "127.0.0.1:$wanted_port:8200" \
        --env BAO_DEV_ROOT_TOKEN_ID --env VAULT_DEV_ROOT_TOKEN_ID \
        --entrypoint vault "$IMAGE" \
        server -dev -dev-no-store-token -dev-listen-address=0.0.0.0:8200 >/dev/null </dev/null ||
        die "docker could not run $IMAGE"
    port=$(docker port "$(saved container)" 8200/tcp | head -n 1)
    port=${port##*:}
    printf '%s\n' "$port" >"$state/port"
    address=http://127.0.0.1:$port
    for ((tries = 0; tries < 300; tries++)); do
        if is_ready; then return; fi
        container_runs || die "the container of $IMAGE has ended"
        sleep 0.1
    done
    die "the container of $IMAGE was not ready within 30 s"
}

if command -v bao >/dev/null; then
    program=bao
elif command -v vault >/dev/null; then
    program=vault
elif command -v docker >/dev/null; then
    program=docker
else
    die 'none of bao, vault and docker is on the PATH; OpenBao is at https://openbao.org/downloads'
fi
if [[ $program == docker ]]; then start_container; else start_process "$program"; fi

# --- what is in it -----------------------------------------------------------------------

# The least that the service needs. Without "patch" it works as well, in two requests
# instead of one.
policy='path "secret/data/intentframe/*" {
  capabilities = ["create", "update", "patch", "read", "delete"]
}
path "secret/metadata/intentframe/*" {
  capabilities = ["read", "list", "delete"]
}'
as_json() { awk '{ gsub(/"/, "\\\""); printf "%s\\n", $0 }'; }
must PUT "sys/policies/acl/$POLICY" "{\"policy\":\"$(as_json <<<"$policy")\"}" >/dev/null
must POST sys/auth/approle '{"type":"approle"}' >/dev/null
must POST "auth/approle/role/$ROLE" \
    "{\"token_policies\":[\"$POLICY\"],\"token_ttl\":\"20s\",\"token_max_ttl\":\"60s\"}" >/dev/null

# field NAME: a text field of the answer on standard input; ids are plain letters, digits, -
field() {
    local value
    value=$(sed -n "s/.*\"$1\":\"\([A-Za-z0-9-]*\)\".*/\1/p")
    [[ -n $value ]] || die "the answer has no $1"
    printf '%s' "$value"
}
role_id=$(must GET "auth/approle/role/$ROLE/role-id" | field role_id)
secret_id=$(must POST "auth/approle/role/$ROLE/secret-id" | field secret_id)

cat >"$state/exports.new" <<LINES
export VAULT_ADDR=$address
export VAULT_ROLE_ID=$role_id
export VAULT_SECRET_ID=$secret_id
LINES
mv -- "$state/exports.new" "$state/exports"
done_well=yes
cat "$state/exports"

say "$program serves at $address; the root token is in $state/root-token"
for variable in VAULT_TOKEN VAULT_TOKEN_FILE VAULT_AGENT_ADDR VAULT_NAMESPACE VAULT_KV_MOUNT \
    VAULT_PATH_PREFIX VAULT_ROLE_ID_FILE VAULT_SECRET_ID_FILE VAULT_SECRET_ID_WRAPPED; do
    if [[ -n ${!variable:-} ]]; then
        say "$variable is set in your environment, and not meant for this server: unset it"
    fi
done
