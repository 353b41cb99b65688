#!/usr/bin/env bash
# Stores, gets, lists and deletes through the service and its commands, against a real Vault
# or OpenBao: the one that the environment names (VAULT_ADDR and the service's other
# settings), else a development server that it starts and stops.
#
#   scripts/vault_smoke_test.sh [--bin PATH]
#
# PATH is the program, by default cargo's debug build. The namespaces have random names and
# are deleted at the end. Prints a line for each check and `N passed, N failed`; exits with 1
# when a check failed. Only on its own server does it also look into Vault itself.
set -euo pipefail
# shellcheck source=scripts/vault_service.sh
source "$(dirname "${BASH_SOURCE[0]}")/vault_service.sh"

bin=''
parse_options '--bin' "$@"
find_program "$bin"

passed=0 failed=0

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

# answers WHAT METHOD PATH [PUT-BODY] EXPECTED: checks status and body
answers() {
    local expected=${!#}
    ask "${@:2:$#-2}" || true
    check "$1" "$status $body" "$expected"
}

# contains TEXT: whether the body has it
contains() { if [[ $body == *"$1"* ]]; then echo yes; else echo no; fi; }

# runs WHAT EXPECTED ARGUMENT...: checks exit code and output of a command, whose standard
# input is $input
input=''
runs() {
    local code=0 output
    output=$(INTENTFRAME_VAULT_SOCKET=$socket "$program" "${@:3}" 2>/dev/null <<<"$input") || code=$?
    check "$1 (command)" "$code $(cut -f 1-4 <<<"$output" | tr '\t' ' ')" "$2"
}

# in_vault WHAT NAMESPACE EXPECTED: checks the status of the secret's metadata, where versions
# are found even when none can be read any more
in_vault() {
    [[ $own_vault == yes ]] || return 0
    local found
    found=$(printf 'header = "X-Vault-Token: %s"\n' "$(<"$place/vault/root-token")" |
        curl -q --config - --silent --noproxy '*' --output /dev/null --write-out '%{http_code}' \
            "$VAULT_ADDR/v1/secret/metadata/intentframe/$2")
    check "$1" "$found" "$3"
}

# The database is this script's own, so everything listed is to be deleted.
delete_all() {
    local pair
    [[ -n $service_pid ]] || return 0
    ask GET /v1/credentials || true
    while read -r pair; do
        [[ -z $pair ]] || ask DELETE "/v1/credentials/$pair" || true
    done < <(grep -o '"namespace":"[^"]*","key":"[^"]*"' <<<"$body" |
        sed 's/^"namespace":"\(.*\)","key":"\(.*\)"$/\1\/\2/')
}

make_place
before_the_end=delete_all
[[ -n ${VAULT_ADDR:-}${VAULT_AGENT_ADDR:-} ]] || set_up_vault
random=$(od -An -N6 -tx1 /dev/urandom | tr -d ' \n')
canary=canary-$random-value
start_service trace

ns=smoke.$random
path=/v1/credentials/$ns/api_key
missing='404 {"detail":"credential not found"}'
stored='200 {"status":"stored"}'
deleted='200 {"status":"deleted"}'

ask GET /health
check 'health' "$status $(contains '"status":"ok"') $(contains '"backend":"HashiCorpVault"')" '200 yes yes'
answers 'get of none' GET "$path" "$missing"
answers 'list of none' GET "/v1/credentials/$ns" '200 []'
answers 'delete of none' DELETE "$path" "$deleted"

answers 'store' PUT "$path" \
    "{\"value\":\"$canary\",\"delivery_mode\":\"runtime_env\",\"env_name\":\"SMOKE_KEY\",\"allowed_consumers\":[\"uwe\"]}" "$stored"
answers 'get' GET "$path" "200 {\"value\":\"$canary\"}"
ask HEAD "$path"
check 'has' "$status" 200
in_vault 'it is in Vault' "$ns" 200
ask GET "/v1/credentials/$ns"
check 'list has it, masked' "$status $(contains '"masked_preview":"canary....ue"') $(contains "$canary")" '200 yes no'
answers 'runtime-env' GET /v1/runtime-env \
    "200 [{\"namespace\":\"$ns\",\"key\":\"api_key\",\"env_name\":\"SMOKE_KEY\",\"allowed_consumers\":[\"uwe\"]}]"
answers 'store of a second key' PUT "/v1/credentials/$ns/second" '{"value":"two"}' "$stored"
answers 'the first is still there' GET "$path" "200 {\"value\":\"$canary\"}"
answers 'store of any text' PUT "$path" '{"value":"\u00e9\n\"\\\ud83d\udd11 ключ"}' "$stored"
answers 'it comes back as it was' GET "$path" '200 {"value":"é\n\"\\🔑 ключ"}'
ask PUT '/v1/credentials/not%20one/key' "{\"value\":\"$canary\"}"
check 'a bad namespace is refused, without echo' "$status $(contains "$canary")" '422 no'

answers 'delete of the second' DELETE "/v1/credentials/$ns/second" "$deleted"
in_vault 'the secret stays in Vault with its other key' "$ns" 200

# A wrapped secret ID serves one start only.
if [[ -z ${VAULT_SECRET_ID_WRAPPED:-} ]]; then
    code=0
    stop_service || code=$?
    check 'the service stops with 0' "$code" 0
    start_service trace
    answers 'the value outlasts the service' GET "$path" '200 {"value":"é\n\"\\🔑 ключ"}'
fi
answers 'delete of the last key' DELETE "$path" "$deleted"
in_vault 'the secret is gone from Vault with its metadata' "$ns" 404
answers 'get afterwards' GET "$path" "$missing"

ns=$ns.cli
runs 'has of none' '1 ' has "$ns/token"
runs 'check of none' "1 $ns/token" check "$ns/token"
input=$canary-3
runs 'store' '0 ' store "$ns/token" --delivery-mode runtime_env --env-name SMOKE_TOKEN --consumer edi
input=''
runs 'get' "0 $canary-3" get "$ns/token"
runs 'has' '0 ' has "$ns/token"
runs 'check' '0 ' check "$ns/token"
runs 'list' "0 $ns token runtime_env canary....-3" list "$ns"
runs 'runtime-env' "0 $ns token SMOKE_TOKEN edi" runtime-env
answers 'the service has the stored value' GET "/v1/credentials/$ns/token" "200 {\"value\":\"$canary-3\"}"
runs 'delete' '0 ' delete "$ns/token"
runs 'get afterwards' '1 ' get "$ns/token"
answers 'nothing is left' GET /v1/credentials '200 []'

delete_all
stop_service || true
# logged TEXT: whether the service's log, at the level trace, contains it
logged() { if grep -qE -e "$1" "$service_log"; then echo yes; else echo no; fi; }
check 'the log has no value' "$(logged "$canary")" no
# The form of a token of Vault or OpenBao.
check 'the log has no token' "$(logged '\b(hvs|hvb|s|b)\.[A-Za-z0-9_-]{20,}')" no
for name in VAULT_TOKEN VAULT_SECRET_ID; do
    [[ -z ${!name:-} ]] || check "the log has no $name" "$(logged "${!name}")" no
done

echo "$passed passed, $failed failed"
((failed == 0))
