# Sourced by demo.sh, test.sh and sanitize.sh: `setup EXTRA` makes the virtual environment, installs this project with that
# extra of pyproject.toml, and leaves the interpreter in $python and the project's directory in $root. A second run takes no time.
#
# TIERED_VENV   where the environment is (default: .venv in the project)
# PYTHON        the interpreter to make it with (default: python3, else the newest python3.x; 3.10 or newer)

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${TIERED_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
python=$venv/bin/python
pip_options=(--quiet --disable-pip-version-check --no-input)

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

works() {
    new_enough "$python" && "$python" -m pip --version >/dev/null 2>&1
}

# Some distributions ship Python without `ensurepip`. Then the environment is made bare and pip put into it by the pip outside.
make_venv() {
    "$1" -m venv --clear "$venv" >/dev/null 2>&1 && works && return
    "$1" -m venv --clear --without-pip "$venv" || return
    "$1" -m pip install "${pip_options[@]}" --target "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip
    works
}

find_venv() {
    works && return
    # --clear empties the directory, so it must be one that is ours to empty.
    if [ -n "$(ls -A "$venv" 2>/dev/null)" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
        fail "$venv is not a virtual environment; set TIERED_VENV to another place"
    fi
    local candidate found='' candidates=(python3 python3.{19..10})
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        new_enough "$candidate" || continue
        found="$found $candidate"
        echo "making a virtual environment in $venv with $candidate" >&2
        make_venv "$candidate" && return
    done
    [ -n "$found" ] || fail "no Python 3.10 or newer found (tried: ${candidates[*]}); install one, or name it in PYTHON"
    fail "cannot make a virtual environment with$found: install its 'venv' module or pip (Debian, Ubuntu: apt install python3-venv)"
}

# The stamps say what was installed, from which project files and C sources, in which directory; any change makes all of them stale.
install() {
    local stamp=$venv/.tiered-$1 state
    state=$(cd "$root" && "$python" -c 'import hashlib, os
import glob
files = ["pyproject.toml", "setup.py", *sorted(glob.glob("tiered/compiled/*"))]
print(hashlib.sha256(b"".join([os.fsencode(os.getcwd()), *(open(file, "rb").read() for file in files)])).hexdigest())')
    [ "$(cat "$stamp" 2>/dev/null)" = "$state" ] && return
    echo "installing tiered[$1] into $venv" >&2
    (cd "$root" && "$python" -m pip install "${pip_options[@]}" --editable ".[$1]") || fail "the installation failed, see above"
    local other
    for other in "$venv"/.tiered-*; do
        [ "$(cat "$other" 2>/dev/null)" = "$state" ] || rm -f "$other"
    done
    echo "$state" >"$stamp"
}

setup() {
    find_venv
    install "$1"
}
