#!/usr/bin/env bash
# Lint, types and the test suite, on a machine with nothing but Python and pip: sets up a virtual environment first.
# Arguments go to pytest (`tools/test.sh -k journal`); where CI=true they are left out, so that everything runs.
# The tests are spread over all processors; `-n 0` keeps them in one process, for a debugger.
# All three run even if one fails; the exit status says whether any did.

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup test
cd "$root"
[ "${CI:-}" = true ] && set --

failed=()
step() {
    local name=$1
    shift
    echo "== $name" >&2
    "$python" -m "$@" || failed+=("$name")
}
step ruff ruff check
step mypy mypy
step pytest pytest -n auto --dist worksteal "$@"

[ ${#failed[@]} -eq 0 ] || fail "failed: ${failed[*]}"
