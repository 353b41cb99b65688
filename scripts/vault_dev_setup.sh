#!/usr/bin/env bash
# Starts a Vault server for development, in memory: KV v2 at secret/, the policy that the
# service needs, and an AppRole whose tokens live 20 s, and 60 s with renewals.
#
#   eval "$(scripts/vault_dev_setup.sh)"     starts it and sets VAULT_ADDR, VAULT_ROLE_ID and
#                                            VAULT_SECRET_ID; a second time, sets them again
#   scripts/vault_dev_setup.sh --stop        stops it; all its data is gone
#
#   --port N       listen on this port (default: any free one) of the loopback interface
#   --state DIR    where process ID, log and root token are kept: a directory of its own,
#                  mode 0700 (default: in XDG_RUNTIME_DIR, else in /tmp)
#
# The server is `bao` or `vault` on the PATH, or the one that scripts/install-test-deps
# provides. Only export lines go to standard output. No secret is in an argument, where `ps`
# would show it.
set -euo pipefail
# shellcheck source=scripts/vault_service.sh
source "$(dirname "${BASH_SOURCE[0]}")/vault_service.sh"

port='' state=${XDG_RUNTIME_DIR:-/tmp}/intentframe-dev-vault-$EUID stop=no
if [[ ${!#} == --stop ]]; then
    stop=yes
    set -- "${@:1:$#-1}"
fi
parse_options '--port --state' "$@"
if [[ -n $port && ! $port =~ ^[1-9][0-9]{0,4}$ ]]; then
    say '--port is a number from 1 to 65535'
    exit 2
fi

# In /tmp, another user could have made a directory of this name.
check_state() {
    [[ -d $state && -O $state && ! -L $state ]] ||
        die "$state is not a directory of yours; remove it, or choose another with --state"
}

saved() { cat "$state/$1" 2>/dev/null || true; }

# The arguments are compared too, because process IDs are used again.
runs() {
    local pid
    pid=$(saved pid)
    [[ -n $pid ]] && ps -ww -o args= -p "$pid" 2>/dev/null | grep -qF -- "-dev-listen-address=$(saved address)"
}

stop_server() {
    local tries
    for ((tries = 0; tries < 100; tries++)); do
        runs || break
        kill -TERM "$(saved pid)" 2>/dev/null || true
        sleep 0.05
    done
    if runs; then kill -KILL "$(saved pid)" 2>/dev/null || true; fi
    rm -rf -- "$state"
}

if [[ $stop == yes ]]; then
    if [[ -e $state || -L $state ]]; then
        check_state
        stop_server
    fi
    say 'stopped'
    exit
fi

if ! mkdir -m 700 -- "$state" 2>/dev/null; then
    check_state
    [[ -s $state/exports ]] || die "$state: another set-up is under way; if not, use --stop"
    if runs; then
        say 'it is running already'
        cat "$state/exports"
        exit
    fi
    stop_server # the remains of one that was killed
    mkdir -m 700 -- "$state"
fi
umask 077
done_well=no
trap '[[ $done_well == yes ]] || stop_server' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

server=$(server_program)
command -v curl >/dev/null || die 'curl is missing'
root_token=dev-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
printf '%s\n' "$root_token" >"$state/root-token"

# root METHOD PATH [BODY]: prints the answer to a request of root, whose token goes by standard
# input; neither ~/.curlrc nor a proxy has a part in it
root() {
    printf 'header = "X-Vault-Token: %s"\n' "$root_token" |
        curl -q --config - --silent --show-error --fail --noproxy '*' --max-time 10 \
            --request "$1" ${3:+--data "$3"} "http://$address/v1/$2"
}

# start: 0 when the server is ready, 1 when it has ended, most often because the port is taken
start() {
    local tries
    address=127.0.0.1:${port:-$((20000 + RANDOM % 12000))}
    printf '%s\n' "$address" >"$state/address"
    # In a process group of its own, so that an interrupt at the terminal does not end it.
    set -m
    (
        # Settings of the user's client are not the server's.
        for variable in "${!VAULT_@}" "${!BAO_@}"; do unset "$variable"; done
        export BAO_DEV_ROOT_TOKEN_ID=$root_token VAULT_DEV_ROOT_TOKEN_ID=$root_token
        exec "$server" server -dev -dev-no-store-token "-dev-listen-address=$address" \
            </dev/null >"$state/log" 2>&1
    ) &
    local pid=$!
    printf '%s\n' "$pid" >"$state/pid"
    disown
    set +m
    for ((tries = 0; tries < 300; tries++)); do
        # The mount is the last thing that a development server gets ready.
        if root GET secret/config >/dev/null 2>&1; then return; fi
        kill -0 "$pid" 2>/dev/null || return 1
        sleep 0.1
    done
    die "$server was not ready within 30 s"
}

for ((tries = 0; ; tries++)); do
    if start; then break; fi
    # The log's lines with tokens and keys are left out.
    [[ -z $port && $tries -lt 5 ]] ||
        die "$server has ended: $(grep -vi 'token\|key' "$state/log" | tail -n 5)"
done

# The least that the service needs. Without "patch" it works as well, with two requests in
# place of one.
policy='path \"secret/data/intentframe/*\" { capabilities = [\"create\", \"update\", \"patch\", \"read\", \"delete\"] }
path \"secret/metadata/intentframe/*\" { capabilities = [\"read\", \"list\", \"delete\"] }'
root PUT sys/policies/acl/intentframe "{\"policy\":\"${policy//$'\n'/\\n}\"}"
root POST sys/auth/approle '{"type":"approle"}'
role=auth/approle/role/intentframe
root POST "$role" '{"token_policies":["intentframe"],"token_ttl":"20s","token_max_ttl":"60s"}'

# field NAME: a field of the answer on standard input; IDs are letters, digits and hyphens
field() { sed -n "s/.*\"$1\":\"\([A-Za-z0-9-]*\)\".*/\1/p" | grep . || die "the answer has no $1"; }
role_id=$(root GET "$role/role-id" | field role_id)
secret_id=$(root POST "$role/secret-id" | field secret_id)

cat >"$state/exports.new" <<LINES
export VAULT_ADDR=http://$address
export VAULT_ROLE_ID=$role_id
export VAULT_SECRET_ID=$secret_id
LINES
mv -- "$state/exports.new" "$state/exports"
done_well=yes
cat "$state/exports"

say "$server serves at http://$address; the root token is in $state/root-token"
for variable in VAULT_TOKEN VAULT_TOKEN_FILE VAULT_AGENT_ADDR VAULT_NAMESPACE VAULT_KV_MOUNT \
    VAULT_PATH_PREFIX VAULT_ROLE_ID_FILE VAULT_SECRET_ID_FILE VAULT_SECRET_ID_WRAPPED; do
    [[ -z ${!variable:-} ]] || say "unset $variable: it is not meant for this server"
done
