#!/usr/bin/env bash
# Looks whether the simulation finds bugs: plants those of this folder in a copy of the project, all in one build, has one
# after the other take effect, and says which seed finds it. Fails if one is not found.
#
#   broker/src/simulation/planted/run.sh [SEEDS [NAME...]]    the first SEEDS seeds (60), for all bugs or those named
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(git -C "$here" rev-parse --show-toplevel)
seeds=${1:-60}
names=("${@:2}")
if [ ${#names[@]} = 0 ]; then
  for patch in "$here"/*.patch; do
    name=$(basename "$patch" .patch)
    if [ "$name" != switch ]; then names+=("$name"); fi
  done
fi

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cd "$root"
git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from=- | tar -x -C "$copy"
cd "$copy"
patch -p1 --quiet < "$here/switch.patch"
for patch in "$here"/*.patch; do
  if [ "$(basename "$patch")" != switch.patch ]; then patch -p1 --quiet < "$patch"; fi
done
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
# Many runs are worth a better build.
export CARGO_PROFILE_DEV_OPT_LEVEL=${CARGO_PROFILE_DEV_OPT_LEVEL:-2}
cargo test -p weir --lib --no-run

missed=0
for name in "${names[@]}"; do
  found=
  for test in the_same_holds_for_a_cluster what_is_acknowledged_is_kept_whatever_goes_wrong; do
    # A failure is what is wanted.
    told=$(WEIR_PLANTED=$name WEIR_TEST_SEEDS=0..$seeds timeout 3600 cargo test --quiet -p weir --lib "$test" 2>&1) || true
    found=$(sed -n 's/^failing seed: \([0-9]*\);.*/\1/p' <<< "$told")
    if [ -n "$found" ]; then break; fi
  done
  if [ -n "$found" ]; then
    echo "$name: found by seed $found of $test"
  else
    echo "$name: NOT found"
    missed=1
  fi
done
exit $missed
