#!/bin/sh
# A job for cron or CI: it does not start without all of its credentials, and its log has none of them.
#
#   examples/job.sh COMMAND [ARGUMENT]...
#
# JOB_CREDENTIALS lists them: NAMESPACE/KEY, separated by blanks. Each needs an `env_name`.
set -eu

: "${JOB_CREDENTIALS:?is not set; for example: JOB_CREDENTIALS='openai/api_key github.myorg/token'}"
if [ $# -eq 0 ]; then
    echo "usage: $0 COMMAND [ARGUMENT]..." >&2
    exit 2
fi
# Names what is missing, and ends the script.
# shellcheck disable=SC2086  # names of credentials have no blanks here
credential-vault check $JOB_CREDENTIALS >&2

selected=
for credential in $JOB_CREDENTIALS; do selected="$selected --only $credential"; done
# shellcheck disable=SC2086
exec credential-vault exec --mask $selected -- "$@"
