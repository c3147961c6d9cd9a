#!/bin/sh
# Runs the tests in two processes, which is what two cores are for: engine, compiler and kernels compute, the rest mostly
# waits for brokers, clocks and processes. Usage: in-two.sh PYTEST. Fails when either does.
computing="engine compiler kernels bench codecs docs broker"
mkdir -p build
log=build/computing-tests.log
here=""; elsewhere=""
for name in $computing; do here="$here tests/$name"; elsewhere="$elsewhere --ignore=tests/$name"; done
# shellcheck disable=SC2086  lists of words
"$1" -q -o cache_dir=build/pytest-cache $here > "$log" 2>&1 &
other=$!
trap 'kill $other 2> /dev/null' INT TERM
# shellcheck disable=SC2086
"$1" -q $elsewhere
status=$?
wait $other
other_status=$?
echo "== tests/{$computing}, $log:"
tail -n +1 "$log" | grep -v '^\.*\(s*\.*\)* *\[ *[0-9]*%\]$'
[ $status -eq 0 ] && [ $other_status -eq 0 ]
