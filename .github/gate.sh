#!/usr/bin/env bash
# The gate of a pull request: is what HEAD makes worse than what BASE makes?
#
#   bash .github/gate.sh BASE [HEAD]
#
# Both are checked out into .work/gate/ and run there on the profile $GATE_PROFILE (default: smoke),
# one after the other: latencies of two machines cannot be compared so well. This tree stays as it
# is, and what is not committed is not judged. GATE_RECORDED=1 runs nothing and judges what both
# have committed in metrics/. The verdict is printed, and lies as Markdown in .work/gate/verdict.md.
# Exit codes are those of `python -m pipeline gate`; 2, too, where a revision does not run.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$root/.work/gate
PATH=$root/.venv/bin:$PATH
profile=${GATE_PROFILE:-smoke}

commit() { # of the revision $1
  git rev-parse --verify --quiet --end-of-options "$1^{commit}" ||
    { echo "gate: $1 is no revision; where history is shallow: git fetch --unshallow" >&2; exit 2; }
}

checkout() { # the commit $1 into the folder $2, with the images and checkpoints of this tree
  git clone --quiet --shared --no-checkout "$root" "$2"
  git -C "$2" checkout --quiet --detach "$1"
  for folder in data/source data/checkpoints; do
    test ! -d "$2/$folder" || cp -rsf "$root/$folder/." "$2/$folder/"
  done
}

make_records() { # in the checkout $1; no step after one that failed
  cd "$1" || return
  # Other versions: an environment and a cache of their own. DVC's cache knows stages by their
  # code, data and params, not by the versions that ran them.
  if cmp --silent pyproject.toml "$root/pyproject.toml"; then
    dvc config --local cache.dir "$root/.dvc/cache"
  else
    make .venv/ready && PATH=$PWD/.venv/bin:$PATH
  fi &&
    sed -i "s/^profile: .*/profile: $profile/" params.yaml &&
    python -m pipeline check && python -m pipeline fingerprint && dvc repro
}

verdict() { # as Markdown, from the text of the gate in the file $1
  echo "### The gate: $(head -n 1 "$1" | cut -d : -f 1)"
  echo
  echo "$base (base) against $head, $what"
  echo
  echo '```text'
  head -c 60000 "$1" # a comment on GitHub holds 65,536 characters
  echo '```'
  echo
  echo "The same on your machine: \`bash .github/gate.sh $base $head\`; the commands above then" \
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
what="as both have recorded it"
said=$work/verdict.txt
if [ -z "${GATE_RECORDED:-}" ]; then
  what="both on the profile \`$profile\` on one machine"
  options=(--rerun)
  for side in base head; do
    if [ $code = 0 ] && ! (make_records "$work/$side"); then
      echo "INVALID: $side does not run; the log says why" > "$said"
      code=2
    fi
  done
fi
if [ $code = 0 ]; then
  cd "$work/head"
  PYTHONPATH=$PWD python -m pipeline gate --baseline ../base ${options[@]+"${options[@]}"} \
    > "$said" || code=$?
  [ -s "$said" ] || { echo "INVALID: the gate itself failed; the log says why" > "$said"; code=2; }
fi
cat "$said"
verdict "$said" > "$work/verdict.md"
exit $code
