#!/usr/bin/env bash
# Stores, gets, lists and deletes through the service and its commands, against a real Vault
# or OpenBao: the one that the environment names (VAULT_ADDR and its kin, as the service
# takes them), else one that it sets up for itself and removes again.
#
#   scripts/vault_smoke_test.sh [--bin PATH]
#
# PATH is the program, by default cargo's debug build. The namespaces have random names, and
# nothing of them is left. Prints a line a check and `N passed, N failed` at the end; exits
# with 1 when a check failed.
set -euo pipefail
# shellcheck source=scripts/vault_service.sh
source "$(dirname "${BASH_SOURCE[0]}")/vault_service.sh"

bin=''
while (($#)); do
    case $1 in
    --bin)
        [[ -n ${2:-} ]] || die '--bin needs a path'
        bin=$2
        shift 2
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
find_program "$bin"

passed=0 failed=0 skipped=0
# Whether something of this may be in Vault.
left=no

# check WHAT GOT EXPECTED
check() {
    if [[ $2 == "$3" ]]; then
        passed=$((passed + 1))
        echo "ok    $1"
    else
        failed=$((failed + 1))
        echo "FAIL  $1: expected $3, got $2"
    fi
}

skip() {
    skipped=$((skipped + 1))
    echo "skip  $1"
}

# has_text TEXT: whether the body has it
has_text() { if [[ $body == *"$1"* ]]; then echo yes; else echo no; fi; }

# put PATH BODY
put() { request PUT "$1" <<<"$2" || true; }
# ask METHOD PATH
ask() { request "$1" "$2" </dev/null || true; }

# cli ARGUMENT...: sets output and code; what it reads comes by standard input
cli() {
    code=0
    output=$(INTENTFRAME_VAULT_SOCKET=$socket "$program" "$@" 2>"$place/cli.err") || code=$?
}

# The database is this script's own, so that whatever is in it is to be removed.
remove_all() {
    local pair pid
    [[ $left == yes ]] || return 0
    if [[ -z $service_pid ]] || ! kill -0 "$service_pid" 2>/dev/null; then
        [[ $own_vault == yes ]] || say "secrets with names that begin with smoke.$random may be left in Vault"
        return
    fi
    # Stores under way come first: they would be seen by nobody later.
    for pid in $(jobs -p); do
        [[ $pid == "$service_pid" ]] || wait "$pid" || true
    done
    ask GET /v1/credentials
    while read -r pair; do
        [[ -n $pair ]] || continue
        ask DELETE "/v1/credentials/$pair"
    done < <(grep -o '"namespace":"[^"]*","key":"[^"]*"' <<<"$body" |
        sed 's/^"namespace":"\(.*\)","key":"\(.*\)"$/\1\/\2/')
}

# --- Vault itself ------------------------------------------------------------------------

# from_vault METHOD PATH: the same for Vault, with configuration for curl (the token, or a
# body) by standard input
from_vault() {
    local server answer options=()
    server=${VAULT_AGENT_ADDR:-$VAULT_ADDR}
    if [[ $server == unix://* ]]; then
        options+=(--unix-socket "${server#unix://}")
        server=http://localhost
    fi
    if [[ -n ${VAULT_NAMESPACE:-} ]]; then options+=(--header "X-Vault-Namespace: $VAULT_NAMESPACE"); fi
    if [[ -n ${VAULT_CACERT_BYTES:-} ]]; then
        printf '%s\n' "$VAULT_CACERT_BYTES" >"$place/ca.pem"
        options+=(--cacert "$place/ca.pem")
    elif [[ -n ${VAULT_CACERT:-} ]]; then
        options+=(--cacert "$VAULT_CACERT")
    fi
    if [[ -n ${VAULT_CLIENT_CERT:-} ]]; then
        options+=(--cert "$VAULT_CLIENT_CERT" --key "${VAULT_CLIENT_KEY:-}")
    fi
    case ${VAULT_SKIP_VERIFY:-} in 1 | t | T | true | TRUE | True) options+=(--insecure) ;; esac
    status=000 body=''
    answer=$(curl -q --config - --silent --show-error --max-time 30 --noproxy 127.0.0.1,localhost \
        --header 'X-Vault-Request: true' --request "$1" ${options[@]+"${options[@]}"} \
        --write-out '\n%{http_code}' "${server%/}/v1/$2" 2>&1) || {
        body=$answer
        return 1
    }
    status=${answer##*$'\n'} body=${answer%$'\n'*}
}

# setting NAME: its value, or what is in the file that NAME_FILE names
setting() {
    local file=${1}_FILE
    if [[ -n ${!1:-} ]]; then
        printf '%s' "${!1}"
    elif [[ -n ${!file:-} ]]; then
        cat -- "${!file}"
    fi
}

# A wrapped secret_id can be unwrapped once, and it is the service that does so.
is_wrapped() {
    [[ -z $(setting VAULT_TOKEN) ]] || return 1
    case ${VAULT_SECRET_ID_WRAPPED:-} in '' | 0 | f* | F*) return 1 ;; esac
}

# Sets token to what the service may ask with; fails where this script may not have one.
own_token() {
    local role secret
    token=$(setting VAULT_TOKEN)
    [[ -z $token ]] || return 0
    if is_wrapped; then return 1; fi
    role=$(setting VAULT_ROLE_ID) secret=$(setting VAULT_SECRET_ID)
    if [[ -z $role || -z $secret ]]; then
        # An agent adds a token of its own to what has none.
        [[ -n ${VAULT_AGENT_ADDR:-} ]]
        return
    fi
    # In curl's configuration, within quotes, a quote is \" and a backslash \\.
    from_vault POST auth/approle/login < <(printf \
        'data = "{\\"role_id\\":\\"%s\\",\\"secret_id\\":\\"%s\\"}"\n' "$role" "$secret") || return 1
    token=$(sed -n 's/.*"client_token":"\([^"]*\)".*/\1/p' <<<"$body")
    [[ -n $token ]]
}

# in_vault WHAT NAMESPACE EXPECTED: checks the status of a look at the secret's metadata,
# where there are versions of it even when none can be read any more
in_vault() {
    if ! own_token; then
        skip "$1: no token to look with"
        return
    fi
    from_vault GET "${VAULT_KV_MOUNT:-secret}/metadata/${VAULT_PATH_PREFIX:-intentframe}/$2" \
        < <(printf 'header = "X-Vault-Token: %s"\n' "$token") || true
    if [[ $status == 403 ]]; then
        skip "$1: the policy does not let it look"
    else
        check "$1" "$status" "$3"
    fi
}

# --- the service -------------------------------------------------------------------------

make_place remove_all
if [[ -z ${VAULT_ADDR:-}${VAULT_AGENT_ADDR:-} ]]; then set_up_vault; fi
random=$(od -An -N6 -tx1 /dev/urandom | tr -d ' \n')
canary=canary-$random-value
start_service trace
left=yes

ns=smoke.$random
path=/v1/credentials/$ns/api_key
ask GET /health
check 'health' "$status $(has_text '"status":"ok"')" '200 yes'
check 'health names the backend' "$(has_text '"backend":"HashiCorpVault"')" yes
check 'health tells of the renewal' "$(has_text '"renewal":{')" yes

ask GET "$path"
check 'get of none' "$status $body" '404 {"detail":"credential not found"}'
ask HEAD "$path"
check 'has of none' "$status" 404
ask GET "/v1/credentials/$ns"
check 'list of none' "$status $body" '200 []'
ask DELETE "$path"
check 'delete of none' "$status $body" '200 {"status":"deleted"}'

put "$path" "{\"value\":\"$canary\",\"delivery_mode\":\"runtime_env\",\"env_name\":\"SMOKE_KEY\",\"allowed_consumers\":[\"uwe\"]}"
check 'store' "$status $body" '200 {"status":"stored"}'
ask GET "$path"
check 'get' "$status $body" "200 {\"value\":\"$canary\"}"
ask HEAD "$path"
check 'has' "$status" 200
in_vault 'it is in Vault' "$ns" 200
ask GET "/v1/credentials/$ns"
check 'list has it, masked' "$status $(has_text '"key":"api_key"') $(has_text '"masked_preview":"canary....ue"')" \
    '200 yes yes'
check 'list has no value' "$(has_text "$canary")" no
ask GET /v1/runtime-env
check 'runtime-env' "$status $body" \
    "200 [{\"namespace\":\"$ns\",\"key\":\"api_key\",\"env_name\":\"SMOKE_KEY\",\"allowed_consumers\":[\"uwe\"]}]"

put "/v1/credentials/$ns/second" '{"value":"two"}'
check 'store of a second key' "$status" 200
ask GET "$path"
check 'the first is still there' "$body" "{\"value\":\"$canary\"}"
put "$path" "{\"value\":\"$canary-2\"}"
ask GET "$path"
check 'store over it' "$status $body" "200 {\"value\":\"$canary-2\"}"
put "$path" '{"value":""}'
ask GET "$path"
check 'the empty string is a value' "$status $body" '200 {"value":""}'
put "$path" '{"value":"\u00e9\n\"\\\ud83d\udd11 ключ"}'
ask GET "$path"
check 'any text comes back as it was' "$status $body" '200 {"value":"é\n\"\\🔑 ключ"}'
put '/v1/credentials/not%20one/key' "{\"value\":\"$canary\"}"
check 'a bad namespace is refused, without echo' "$status $(has_text "$canary")" '422 no'

put "/v1/credentials/$ns.you%40example.com/password" '{"value":"mail"}'
ask GET "/v1/credentials/$ns.you@example.com/password"
check 'a namespace with an address in it' "$status $body" '200 {"value":"mail"}'
ask DELETE "/v1/credentials/$ns.you@example.com/password"
in_vault '... is gone from Vault with its last key' "$ns.you@example.com" 404

writers=()
for number in 1 2 3 4 5 6 7 8; do
    put "/v1/credentials/$ns.many/key$number" "{\"value\":\"of $number\"}" &
    writers+=("$!")
done
wait "${writers[@]}"
for number in 1 2 3 4 5 6 7 8; do
    ask GET "/v1/credentials/$ns.many/key$number"
    check "of eight stores at once, number $number" "$body" "{\"value\":\"of $number\"}"
done
for number in 1 2 3 4 5 6 7 8; do ask DELETE "/v1/credentials/$ns.many/key$number"; done
in_vault 'they are gone from Vault' "$ns.many" 404

ask DELETE "/v1/credentials/$ns/second"
check 'delete of the second' "$status $body" '200 {"status":"deleted"}'
ask GET "/v1/credentials/$ns/second"
check 'it is gone' "$status" 404
in_vault 'the secret stays in Vault with its other key' "$ns" 200

if is_wrapped; then
    skip 'the value outlasts the service: a wrapped secret_id serves one start'
else
    code=0
    stop_service || code=$?
    check 'the service stops with 0' "$code" 0
    check 'its socket is gone' "$([[ -e $socket ]] && echo there || echo gone)" gone
    start_service trace
    ask GET "$path"
    check 'the value outlasts the service' "$status $body" '200 {"value":"é\n\"\\🔑 ключ"}'
fi

ask DELETE "$path"
check 'delete of the last key' "$status $body" '200 {"status":"deleted"}'
in_vault 'the secret is gone from Vault with its metadata' "$ns" 404
ask GET "$path"
check 'get afterwards' "$status $body" '404 {"detail":"credential not found"}'
put "$path" '{"value":"again"}'
ask GET "$path"
check 'store after the last was deleted' "$status $body" '200 {"value":"again"}'
ask DELETE "$path"

# --- the commands ------------------------------------------------------------------------

ns=$ns.cli
cli health </dev/null
check 'health (command)' "$code $([[ $output == *HashiCorpVault* ]] && echo yes)" '0 yes'
cli has "$ns/token" </dev/null
check 'has of none (command)' "$code" 1
cli get "$ns/token" </dev/null
check 'get of none (command)' "$code $output" '1 '
cli check "$ns/token" </dev/null
check 'check of none (command)' "$code $output" "1 $ns/token"

cli store "$ns/token" --delivery-mode runtime_env --env-name SMOKE_TOKEN --consumer edi <<<"$canary-3"
check 'store (command)' "$code" 0
cli get "$ns/token" </dev/null
check 'get (command)' "$code $output" "0 $canary-3"
cli has "$ns/token" </dev/null
check 'has (command)' "$code" 0
cli check "$ns/token" </dev/null
check 'check (command)' "$code" 0
cli list "$ns" </dev/null
check 'list (command)' "$code $(cut -f 1-4 <<<"$output" | tr '\t' ' ')" "0 $ns token runtime_env canary....-3"
cli list --json </dev/null
check 'list --json (command)' "$code $([[ $output == *"\"$ns\""* ]] && echo yes)" '0 yes'
cli runtime-env </dev/null
check 'runtime-env (command)' "$code $(tr '\t' ' ' <<<"$output")" "0 $ns token SMOKE_TOKEN edi"
ask GET "/v1/credentials/$ns/token"
check 'the service has what the command stored' "$body" "{\"value\":\"$canary-3\"}"
cli delete "$ns/token" </dev/null
check 'delete (command)' "$code" 0
cli get "$ns/token" </dev/null
check 'get afterwards (command)' "$code $output" '1 '
in_vault 'the secret is gone from Vault with its metadata (command)' "$ns" 404
for command in serve health list get has store delete runtime-env check; do
    cli "$command" --help </dev/null
    check "$command --help" "$code $([[ -n $output ]] && echo text)" '0 text'
done

# --- afterwards --------------------------------------------------------------------------

ask GET /v1/credentials
check 'nothing is left' "$body" '[]'
[[ $body != '[]' ]] || left=no
remove_all
left=no
stop_service || true
# said TEXT: whether the service's log, kept at its most talkative, has it
said() { if grep -qF -e "$1" "$service_log"; then echo yes; else echo no; fi; }
check 'the log has no value' "$(said "$canary")" no
secrets=no
for name in VAULT_TOKEN VAULT_SECRET_ID; do
    secret=$(setting "$name")
    if [[ -n $secret && $(said "$secret") == yes ]]; then secrets=yes; fi
done
if [[ -n ${token:-} && $(said "$token") == yes ]]; then secrets=yes; fi
# What a token of Vault's or OpenBao's looks like.
if grep -qE '\b(hvs|hvb|s|b)\.[A-Za-z0-9_-]{20,}' "$service_log"; then secrets=yes; fi
check 'the log has no token and no secret_id' "$secrets" no

summary="$passed passed, $failed failed"
((skipped == 0)) || summary+=", $skipped skipped"
echo "$summary"
((failed == 0))
