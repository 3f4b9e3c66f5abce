#!/usr/bin/env bash
# The gate of a pull request: are the artifacts of HEAD worse than those of BASE?
#
#   bash .github/gate.sh BASE [HEAD]
#
# Both are checked out into .work/gate/ and run there with the profile $GATE_PROFILE (default:
# smoke), one after the other on this machine, so that their latencies can be compared. The working
# tree is not touched, and uncommitted changes are not judged. GATE_RECORDED=1 runs nothing and
# judges the records that both have committed in metrics/. The verdict is printed and written as
# Markdown to .work/gate/verdict.md. The exit code is that of `python -m pipeline gate`, or 2 where
# a revision does not run.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$root/.work/gate
PATH=$root/.venv/bin:$PATH
profile=${GATE_PROFILE:-smoke}

git rev-parse --git-dir > /dev/null || # says why, and what to do where it is another user's
  { echo "gate: it compares revisions of a git repository" >&2; exit 2; }

commit() { # print the commit of the revision $1
  git rev-parse --verify --quiet --end-of-options "$1^{commit}" ||
    { echo "gate: $1 is not a revision; in a shallow history: git fetch --unshallow" >&2; exit 2; }
}

checkout() { # the commit $1 into the folder $2, with the images and checkpoints of this tree
  git clone --quiet --shared --no-checkout "$root" "$2"
  git -C "$2" checkout --quiet --detach "$1"
  for folder in data/source data/checkpoints; do
    test ! -d "$2/$folder" || cp -rsf "$root/$folder/." "$2/$folder/"
  done
}

make_records() { # run the pipeline in the checkout $1; a step that fails ends it
  cd "$1" || return
  # A revision that pins other packages gets an environment and a cache of its own: DVC's run cache
  # knows the code, data and params of a stage, but not the versions of packages.
  if cmp --silent pyproject.toml "$root/pyproject.toml"; then
    dvc config --local cache.dir "$root/.dvc/cache"
  else
    make .venv/ready && PATH=$PWD/.venv/bin:$PATH
  fi &&
    sed -i "s/^profile: .*/profile: $profile/" params.yaml &&
    python -m pipeline check && dvc repro
}

verdict() { # print the gate's text in the file $1 as Markdown
  echo "### The gate: $(head -n 1 "$1" | cut -d : -f 1)"
  echo
  echo "$base (base) against $head, $what"
  echo
  echo '```text'
  head -c 60000 "$1" # a comment on GitHub holds 65,536 characters
  echo '```'
  echo
  echo "To repeat it on your machine: \`bash .github/gate.sh $base $head\`. The commands above then" \
    "work in \`.work/gate/head\`."
}

base=$(commit "${1:?usage: gate.sh BASE [HEAD]}")
head=$(commit "${2:-HEAD}")
rm -rf "$work"
mkdir -p "$work"
checkout "$base" "$work/base"
checkout "$head" "$work/head"
code=0
options=()
what="by the records that both have committed"
text=$work/verdict.txt
if [ -z "${GATE_RECORDED:-}" ]; then
  what="both with the profile \`$profile\` on one machine"
  options=(--rerun)
  for side in base head; do
    if [ $code = 0 ] && ! (make_records "$work/$side"); then
      echo "INVALID: $side does not run; see the log" > "$text"
      code=2
    fi
  done
fi
if [ $code = 0 ]; then
  cd "$work/head"
  PYTHONPATH=$PWD python -m pipeline gate --baseline ../base ${options[@]+"${options[@]}"} \
    > "$text" || code=$?
  [ -s "$text" ] || { echo "INVALID: the gate itself failed; see the log" > "$text"; code=2; }
fi
cat "$text"
verdict "$text" > "$work/verdict.md"
exit $code
