#!/usr/bin/env bash
# Retrain one recipe in CI: pull, update imported data, build, save the lock on a branch, push the data, register.
#
#   infra/ci/retrain.sh RECIPE [--report FILE] [--git-remote NAME] [--dvc-remote NAME]
#
# Exit status: 0 released · 10 nothing to do · 3 refused · anything else failed.
# The order matters: a release's lineage must be on the remotes before the release exists.
set -euo pipefail

usage() { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -ge 1 ] || usage
recipe=$1; shift
report=report.md git_remote=origin dvc_remote=
while [ $# -gt 0 ]; do
  case $1 in
    --report) report=$2; shift 2 ;;
    --git-remote) git_remote=$2; shift 2 ;;
    --dvc-remote) dvc_remote=$2; shift 2 ;;
    *) usage ;;
  esac
done

cd "$(git rev-parse --show-toplevel)"
[ -d .venv/bin ] && PATH="$PWD/.venv/bin:$PATH"
remote=(); [ -z "$dvc_remote" ] || remote=(--remote "$dvc_remote")
pointer=data/raw/$recipe.dvc
run=$(date -u +%Y%m%dT%H%M%SZ)-$(git rev-parse --short HEAD)

finish() {  # outcome, exit status
  echo "outcome: $1"
  [ -z "${GITHUB_OUTPUT:-}" ] || echo "outcome=$1" >> "$GITHUB_OUTPUT"
  exit "$2"
}

write_report() {  # outcome
  { printf '# Retrain of `%s`: %s\n\nRun `%s`, commit `%s`.\n\n' "$recipe" "$1" "$run" "$(git rev-parse HEAD)"
    retain show "$recipe" || true
  } > "$report"
}

fail() { write_report failed; finish failed 1; }

echo "== pull"
branches=refs/remotes/$git_remote/retrain/$recipe/
git fetch --quiet "$git_remote" "+refs/heads/retrain/$recipe/*:$branches*" || fail
# Main gets a lock when people merge it: until then the last run's is the newest, and what it names need not be built.
last=$(git for-each-ref --sort=-committerdate --count=1 --format='%(refname)' "$branches")
if [ -n "$last" ]; then
  ours=$(git log -1 --format=%ct -- dvc.lock)
  if [ "$(git log -1 --format=%ct "$last")" -gt "${ours:-0}" ]; then git show "$last:dvc.lock" > dvc.lock; fi
fi
# A remote that holds nothing of this recipe yet is no error: what is missing is built.
dvc pull --quiet --allow-missing --run-cache "${remote[@]}" || echo "pull: the remote is empty or incomplete; building what is missing"
if [ -f "$pointer" ] && grep -qE '^frozen: true' "$pointer"; then
  echo "== update imported data"
  dvc update "$pointer" || fail
fi

echo "== build"
status=0
retain run "$recipe" --no-register || status=$?
case $status in
  0) ;;
  3) write_report refused; finish refused 3 ;;
  *) fail ;;
esac

saved() {  # whether HEAD, or an earlier run's branch on the remote, holds this very lock
  local ref
  for ref in HEAD $(git for-each-ref --format='%(refname)' "$branches"); do
    if [ "$(git rev-parse --quiet --verify "$ref:dvc.lock")" = "$(git hash-object dvc.lock)" ] &&
       [ "$(git rev-parse --quiet --verify "$ref:$pointer")" = "$(git hash-object "$pointer")" ]; then return 0; fi
  done
  return 1
}

if ! saved; then
  echo "== save the lock on retrain/$recipe/$run"
  git switch --quiet --create "retrain/$recipe/$run"
  git add --force -- "$pointer" dvc.lock
  git -c user.name="${GIT_AUTHOR_NAME:-retain}" -c user.email="${GIT_AUTHOR_EMAIL:-retain@localhost}" \
      commit --quiet --message "Retrain $recipe ($run)"
  git push --quiet "$git_remote" HEAD || fail
fi

echo "== push the data"
dvc push --quiet --run-cache "${remote[@]}" || fail

echo "== register"
status=0
outcome=$(retain register "$recipe" --json) || status=$?
case $status in
  0) ;;
  3) write_report refused; finish refused 3 ;;
  *) fail ;;
esac
if ! grep -qE '"(created|promoted)": true' <<< "$outcome"; then
  write_report "nothing to do"; finish "nothing to do" 10
fi
write_report released; finish released 0
