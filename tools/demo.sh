#!/usr/bin/env bash
# The main job, on a machine with nothing but Python and pip: sets up a virtual environment, then runs demo.py.
# Arguments go to demo.py: --big, --big-gb N, --path DIRECTORY, --keep, --help.

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup demo
exec "$python" "$root/tools/demo.py" "$@"
