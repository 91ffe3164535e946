#!/usr/bin/env bash
# Runs all tests in two pytest processes at once. One process runs the tests that start servers of the whole model, and
# the tests of other hosts. The other process runs all other tests. Both take about the same time. With arguments, runs a
# single pytest with these arguments.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ $# -eq 0 ] || exec "$python" -m pytest "$@"

servers=(tests/served tests/quality tests/installed tests/rounding tests/equality tests/omni_pipeline/hosts)
output=$(mktemp)
# The output of the other tests is shown even if the run is interrupted.
trap 'kill $(jobs -p) 2>/dev/null; cat "$output"; rm -f "$output"' EXIT
trap 'exit 1' INT TERM

"$python" -m pytest tests "${servers[@]/#/--ignore=}" -o cache_dir=.pytest_cache/others >"$output" 2>&1 &
others=$!
"$python" -m pytest "${servers[@]}"
rc=$?
echo "waiting for the tests without servers of the whole model"
wait "$others"
rc_others=$?
exit $((rc ? rc : rc_others))
