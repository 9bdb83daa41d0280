# The stages of scripts/test: each runs under a time limit with its output in a file, and its tests
# are counted. Sourced after common.sh.

PASSED=0
FAILED=0
RAN=0

# stage NAME SECONDS COMMAND...: runs one stage unless --only names another.
stage() {
  local name=$1 limit=$2 log began status=0 passed failed counts
  shift 2
  if [ -n "$ONLY" ] && [ "$ONLY" != "$name" ]; then
    [ "$ONLY" != help ] || say "$name"
    return 0
  fi
  RAN=$((RAN + 1))
  log=$TEMP/$name.log
  began=$(date +%s%N)
  timeout -k 10 "$limit" "$@" >"$log" 2>&1 & STAGE=$!
  # In the background, so that Ctrl-C is handled now and not when the stage is over.
  wait "$STAGE" || status=$?
  STAGE=
  counts=$(count_tests "$log")
  passed=${counts% *} failed=${counts#* }
  # A check without tests counts as one; so does a stage that broke off before it counted.
  [ "$status" -ne 0 ] || [ "$passed" -gt 0 ] || is_test_run "$log" || passed=1
  [ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
  PASSED=$((PASSED + passed)) FAILED=$((FAILED + failed))
  report "$name" "$status" "$limit" "$began" "$passed" "$failed" "$log"
}
STAGE=
on_exit '[ -z "$STAGE" ] || { kill -TERM "$STAGE"; wait "$STAGE"; }'

report() {
  local name=$1 status=$2 limit=$3 began=$4 passed=$5 failed=$6 log=$7 verdict=ok detail=
  local tenths=$((($(date +%s%N) - began) / 100000000))
  is_test_run "$log" && detail="$passed passed, $failed failed"
  if [ "$status" -ne 0 ]; then
    verdict=FAILED
    [ "$status" -ne 124 ] || detail="not done after $limit seconds"
    say "----- $name"
    tail -n 200 "$log"
    say "-----"
  fi
  printf '%-6s  %4d.%d s  %-10s  %s\n' "$verdict" $((tenths / 10)) $((tenths % 10)) "$name" "$detail"
}

is_test_run() { grep -q '^test result: ' "$1"; }

# "PASSED FAILED", summed over cargo's closing lines.
count_tests() {
  awk '/^test result: / {
         for (i = 2; i <= NF; i++) {
           if ($i == "passed;") passed += $(i - 1)
           if ($i == "failed;") failed += $(i - 1)
         }
       }
       END { print passed + 0, failed + 0 }' "$1"
}

# The closing line, and the exit status that goes with it.
summary() {
  local skipped=0
  if [ "$ONLY" = help ]; then exit 0; fi
  [ "$RAN" -gt 0 ] || die "there is no stage '$ONLY' (--only help lists them)"
  if [ -s "${EVENKEEL_SKIPPED:-}" ]; then
    skipped=$(wc -l <"$EVENKEEL_SKIPPED")
    say "Skipped:"
    sed 's/^/  /' "$EVENKEEL_SKIPPED"
  fi
  # To cargo a test that finds nothing to do has passed.
  say "$((PASSED - skipped)) passed, $FAILED failed, $skipped skipped"
  [ "$FAILED" -eq 0 ]
  exit
}

# Namespaces of test processes that were killed before they could tidy up.
remove_dead_namespaces() {
  local name pid
  [ "$(id -u)" -eq 0 ] || return 0
  for name in $(ip netns list | awk '{print $1}' | grep '^ekt[0-9]*-'); do
    pid=${name#ekt}
    pid=${pid%%-*}
    [ -d "/proc/$pid" ] && continue
    ip netns pids "$name" | xargs -r kill -KILL
    ip netns del "$name"
    rm -rf "${TMPDIR:-/tmp}/${name%-*}"
  done
}
