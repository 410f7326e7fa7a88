#!/usr/bin/env bash
# The compiled part under AddressSanitizer and UndefinedBehaviorSanitizer: builds it so in a copy of the project, and runs
# there the tests that reach it, after the arena alone under random operations, for FUZZ_SEEDS runs (default: 20). Needs
# gcc with its sanitizer libraries. Arguments go to pytest in place of those tests.
#     bash tools/sanitize.sh tests/test_compiled.py -k decoder

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup test
tests=(tests/test_{arena,objects,compiled,codec,journal,keys,hot,heap,pending,store,write_buffer,cold,checkpoint,compaction,ranges,threads,loads,pages,page_walk,filters,eviction,advisor}.py)
# The process takes several times the memory under the sanitizers, so what measures it is left out.
tests+=(-k "not memory_of_the_process and not that_the_process_grows_by")
[ $# -eq 0 ] || tests=("$@")

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$root"/{tiered,tests,tools,setup.py,pyproject.toml,README.md,LICENSE} "$copy"
rm -f "$copy"/tiered/_native*.so
cd "$copy"
gcc -std=c11 -g -O1 -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all -o fuzz_arena \
    tools/fuzz/arena.c tiered/compiled/arena*.c tiered/compiled/segments.c tiered/compiled/sketch.c
for seed in $(seq "${FUZZ_SEEDS:-20}"); do
    ./fuzz_arena "$seed" 100000 || fail "the arena failed: fuzz_arena $seed 100000"
done

# Built by pip and setuptools as always, so that it is the same code; -O1 and frame pointers make reports readable.
CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1" LDSHARED="gcc -shared" \
    "$python" -m pip install "${pip_options[@]}" --no-deps --target built .
cp built/tiered/_native*.so tiered
compgen -G 'tiered/_native*.so' >/dev/null || fail "the compiled part was not built"

# With malloc in place of Python's own allocator every object has its own guarded memory. Leaks are the interpreter's.
export LD_PRELOAD ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONMALLOC=malloc PYTHONPATH=$copy
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
"$python" -m pytest -q -p no:cacheprovider "${tests[@]}"
