#!/usr/bin/env bash
# What takes too long for every change: interrupts at every line, hundreds of kills, ten thousand stores. About half an hour.
# Arguments go to pytest, such as `-k kill`.

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup test
cd "$root"
export TIERED_INTERRUPT_STRIDE=${TIERED_INTERRUPT_STRIDE:-1}
export TIERED_KILL_ROUNDS=${TIERED_KILL_ROUNDS:-400}
export TIERED_HANDLE_CYCLES=${TIERED_HANDLE_CYCLES:-10000}
exec "$python" -m pytest -o faulthandler_timeout=1800 tests/test_interrupts.py tests/crash tests/test_handles.py "$@"
