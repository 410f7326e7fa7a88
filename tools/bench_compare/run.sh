#!/usr/bin/env bash
# Compare tiered with its rivals: installs them into the project's virtual environment (made by tools/test.sh or
# tools/demo.sh), then runs compare.py with the arguments given, or caches.py, policies.py: the
# hot tier beside caches in memory, and its eviction policies.
#     bash tools/bench_compare/run.sh --records 3000000 --engines tiered,rocksdict
#     bash tools/bench_compare/run.sh caches --task hit
#     bash tools/bench_compare/run.sh policies
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
if [ ! -x "$(command -v "$python")" ]; then
    echo "run.sh: no $python; run 'bash tools/demo.sh' first, or set PYTHON" >&2
    exit 1
fi
"$python" -c 'import rocksdict, diskcache, sqlitedict, zict, cachetools, cachebox, lru' 2>/dev/null ||
    "$python" -m pip install --quiet --disable-pip-version-check \
        rocksdict diskcache sqlitedict zict cachetools cachebox lru-dict
script=compare.py
if [ "${1:-}" = caches ] || [ "${1:-}" = policies ]; then
    script=$1.py
    shift
fi
exec "$python" "tools/bench_compare/$script" "$@"
