#!/usr/bin/env bash
# Lint, types and the test suite, on a machine with nothing but Python and pip: sets up a virtual environment first.
# Arguments go to pytest (`tools/test.sh -k journal`); where CI=true they are left out, so that everything runs.
# The tests are spread over all processors; `-n 0` keeps them in one process, for a debugger.
# Lacking arguments, a second leg of pytest runs without the compiled part.
# All of it runs even if a part fails; the exit status says whether any did.

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
# What the compiled part does, once more by its twins in Python.
[ $# -gt 0 ] || TIERED_PURE=1 step "pytest, in pure Python" \
    pytest -q -n auto --dist worksteal tests/test_{codec,journal,keys,heap,hot,store}.py

[ ${#failed[@]} -eq 0 ] || fail "failed: ${failed[*]}"
