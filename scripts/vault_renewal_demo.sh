#!/usr/bin/env bash
# Shows the service keeping its Vault token alive: against a server of its own, whose tokens
# live 20 s and at most 60 s, the token is renewed about every 10 s, and the service logs in
# again before the 60 s are over, while a credential is read all the time.
#
#   scripts/vault_renewal_demo.sh [--seconds 80] [--bin PATH]
#
# PATH is the program, by default cargo's debug build. Prints the time to live once a second
# and what happens to the token. Exits with 1 when a read failed, the token was not renewed
# in time, or there was no login at the cap.
set -euo pipefail
# shellcheck source=scripts/vault_service.sh
source "$(dirname "${BASH_SOURCE[0]}")/vault_service.sh"

seconds=80 bin=''
while (($#)); do
    case $1 in
    --seconds | --bin)
        [[ -n ${2:-} ]] || die "$1 needs a value"
        if [[ $1 == --bin ]]; then bin=$2; else seconds=$2; fi
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
if [[ ! $seconds =~ ^[1-9][0-9]{0,4}$ ]]; then
    say '--seconds is a whole number'
    exit 2
fi
find_program "$bin"

# Half of 20 s, jitter, and what a loaded machine adds; the token would live for 2 s more.
LONGEST_GAP=18
CAP=60
# In the time given.
FEWEST=$((seconds / 15))
LOGINS=$((1 + (seconds - 2) / CAP))

reader=''
stop_reader() {
    [[ -n $reader ]] || return 0
    kill "$reader" 2>/dev/null || true
    wait "$reader" 2>/dev/null || true
    reader=''
}

# read_on: one line a read
read_on() {
    while true; do
        request GET /v1/credentials/demo/token </dev/null || true
        if [[ $status == 200 && $body == '{"value":"made-up-token"}' ]]; then
            echo ok
        else
            echo "FAIL  at $SECONDS s: $status $body"
        fi
        sleep 0.1
    done
}

# count PATTERN FILE
count() { grep -c -e "$1" "$2" || true; }

make_place stop_reader
set_up_vault
SECONDS=0
start_service info
request PUT /v1/credentials/demo/token <<<'{"value":"made-up-token"}' || true
[[ $status == 200 ]] || die "a credential could not be stored: $status $body"
read_on >"$place/reads" &
reader=$!

lines=0 shown=-1 ttl='' last_event='' longest=0 lowest=999 rises=0
# The service's lines about its token, as they come.
show_events() {
    local line
    while IFS= read -r line; do
        lines=$((lines + 1))
        case $line in
        *'renewed the Vault token'* | *'logged in to Vault by AppRole'*)
            if [[ -n $last_event ]] && ((SECONDS - last_event > longest)); then
                longest=$((SECONDS - last_event))
            fi
            last_event=$SECONDS
            printf '%4d s  %s\n' "$SECONDS" "${line#*] }"
            ;;
        *WARN* | *ERROR*) printf '%4d s  %s\n' "$SECONDS" "$line" ;;
        esac
    done < <(tail -n "+$((lines + 1))" "$service_log")
}

show_ttl() {
    local now state
    request GET /health </dev/null || true
    state=$(sed -n 's/.*"renewal":{"state":"\([a-z_]*\)".*/\1/p' <<<"$body")
    now=$(sed -n 's/.*"ttl_seconds":\([0-9]*\).*/\1/p' <<<"$body")
    printf '%4d s  %s, %s s left; %s reads, %s failed\n' "$SECONDS" "${state:-no answer}" \
        "${now:-?}" "$(count ok "$place/reads")" "$(count FAIL "$place/reads")"
    if [[ -n $now ]]; then
        if ((now < lowest)); then lowest=$now; fi
        if [[ -n $ttl ]] && ((now > ttl)); then rises=$((rises + 1)); fi
        ttl=$now
    fi
}

while ((SECONDS < seconds)); do
    show_events
    if ((SECONDS > shown)); then
        shown=$SECONDS
        show_ttl
    fi
    kill -0 "$service_pid" 2>/dev/null || die "the service has ended: $(tail -n 3 "$service_log")"
    sleep 0.2
done
show_events
stop_reader
if ((SECONDS - last_event > longest)); then longest=$((SECONDS - last_event)); fi

renewals=$(count 'renewed the Vault token' "$service_log")
logins=$(count 'logged in to Vault by AppRole' "$service_log")
reads=$(count ok "$place/reads")
failures=$(count FAIL "$place/reads")
grep FAIL "$place/reads" | head -n 3 || true

result=0
# demand HOLDS WHAT, where HOLDS is 1 or 0
demand() {
    if (($1)); then return; fi
    echo "FAIL  $2"
    result=1
}
demand $((reads > 0)) 'no read at all'
demand $((failures == 0)) "$failures reads failed"
demand $((renewals >= FEWEST)) "$renewals renewals; in $seconds s there are at least $FEWEST"
demand $((logins >= LOGINS)) "$logins logins; in $seconds s there are at least $LOGINS"
demand $((longest <= LONGEST_GAP)) "$longest s without a renewal or a login"
demand $((lowest > 0 && lowest < 999)) 'the token came to its end'
demand $((rises > 0 || seconds < 15)) 'the time to live never grew'

echo "$seconds s: $renewals renewals, $logins logins, $reads reads, $failures failures;" \
    "at least $lowest s left, at most $longest s between renewals"
exit "$result"
