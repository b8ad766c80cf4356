#!/usr/bin/env bash
# schemathesis against a running node: every answer must be one that openapi.yaml documents.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: scripts/with-node.sh scripts/contract.sh [SECONDS]

Generates requests from openapi.yaml for at most SECONDS (150) and checks every answer against it.

  TENURE_URL   the node, as scripts/with-node.sh sets it
  ST           the schemathesis program (st)
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
: "${TENURE_URL:?start a node with scripts/with-node.sh}"

root=$(dirname "$(dirname "$(readlink -f "$0")")")
# It keeps notes in the folder it runs in.
work=$(mktemp -d "${TMPDIR:-/tmp}/tenure-contract.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
TENURE_ROOT=$root PYTHONDONTWRITEBYTECODE=1 "${ST:-st}" --config-file "$root/scripts/lint/schemathesis.toml" \
    run "$root/openapi.yaml" --url "$TENURE_URL" --no-color --max-time "${1:-150}" \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance
