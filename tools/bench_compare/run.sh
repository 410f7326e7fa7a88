#!/usr/bin/env bash
# Compare tiered with its rivals: installs them into the project's virtual environment (made by tools/test.sh or
# tools/demo.sh), then runs compare.py with the arguments given.
#     bash tools/bench_compare/run.sh --records 3000000 --engines tiered,rocksdict
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
if [ ! -x "$(command -v "$python")" ]; then
    echo "run.sh: no $python; run 'bash tools/demo.sh' first, or set PYTHON" >&2
    exit 1
fi
"$python" -c 'import rocksdict, diskcache, sqlitedict, zict' 2>/dev/null ||
    "$python" -m pip install --quiet --disable-pip-version-check rocksdict diskcache sqlitedict zict
exec "$python" tools/bench_compare/compare.py "$@"
