#!/usr/bin/env bash
# Shows how the service keeps its Vault token alive. On a development server of its own, whose
# tokens live 20 s, and 60 s with renewals, the token is renewed about every 10 s, and the
# service logs in again before the 60 s are over; a credential is read all the time.
#
#   scripts/vault_renewal_demo.sh [--seconds 80] [--bin PATH]
#
# PATH is the program, by default cargo's debug build. Prints the time to live once a second,
# and what happens to the token. Exits with 1 when a read failed, or when there were too few
# renewals or logins.
set -euo pipefail
# shellcheck source=scripts/vault_service.sh
source "$(dirname "${BASH_SOURCE[0]}")/vault_service.sh"

seconds=80 bin=''
parse_options '--seconds --bin' "$@"
if [[ ! $seconds =~ ^[1-9][0-9]{0,4}$ ]]; then
    say '--seconds is a whole number'
    exit 2
fi
find_program "$bin"
make_place
set_up_vault
SECONDS=0
start_service info
ask PUT /v1/credentials/demo/token '{"value":"made-up-token"}'
[[ $status == 200 ]] || die "a credential could not be stored: $status $body"

# count TEXT: how many lines of the service's log contain it
count() { grep -c -F -e "$1" "$service_log" || true; }

reads=0 failures=0 shown=-1 lines=0
while ((SECONDS < seconds)); do
    ask GET /v1/credentials/demo/token || true
    reads=$((reads + 1))
    if [[ $status != 200 || $body != '{"value":"made-up-token"}' ]]; then
        failures=$((failures + 1))
        printf '%4d s  FAIL  %s %s\n' "$SECONDS" "$status" "$body"
    fi
    while IFS= read -r line; do
        lines=$((lines + 1))
        case $line in
        *'renewed the Vault token'* | *'logged in to Vault'*) printf '%4d s  %s\n' "$SECONDS" "${line#*] }" ;;
        *WARN* | *ERROR*) printf '%4d s  %s\n' "$SECONDS" "$line" ;;
        esac
    done < <(tail -n "+$((lines + 1))" "$service_log")
    if ((SECONDS > shown)); then
        shown=$SECONDS
        ask GET /health || true
        printf '%4d s  %s\n' "$SECONDS" "$(sed -n 's/.*"renewal":{\([^}]*\)}.*/\1/p' <<<"$body")"
    fi
    sleep 0.1
done

renewals=$(count 'renewed the Vault token')
logins=$(count 'logged in to Vault')
echo "$seconds s: $renewals renewals, $logins logins, $reads reads, $failures failed"
if ((failures > 0 || renewals < seconds / 20 || logins < 1 + (seconds - 2) / 60)); then
    echo "FAIL  expected no failed read, $((seconds / 20)) renewals and $((1 + (seconds - 2) / 60)) logins"
    exit 1
fi
