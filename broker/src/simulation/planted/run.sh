#!/usr/bin/env bash
# Looks whether the simulation finds bugs: plants those of this folder in a copy of the project, all in one build, has one
# after the other take effect, and says which seed finds it, and by what. Fails if one is not found, or if seeds find
# something without any.
#
#   broker/src/simulation/planted/run.sh [SEEDS [NAME...]]    the first SEEDS seeds (150), for all bugs or those named
#
# The build goes to $CARGO_TARGET_DIR, or target/planted: its first one takes minutes, a run of all bugs then some.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(git -C "$here" rev-parse --show-toplevel)
seeds=${1:-150}
names=("${@:2}")
if [ ${#names[@]} = 0 ]; then
  for patch in "$here"/*.patch; do
    name=$(basename "$patch" .patch)
    if [ "$name" != switch ]; then names+=("$name"); fi
  done
fi
for name in "${names[@]}"; do
  if [ ! -e "$here/$name.patch" ]; then echo "there is no bug called $name" >&2; exit 2; fi
done

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/planted}
# Many runs are worth a better build.
export CARGO_PROFILE_DEV_OPT_LEVEL=${CARGO_PROFILE_DEV_OPT_LEVEL:-2}
# At the same place each time, where only what has changed is new: so that only that is built again.
copy=$CARGO_TARGET_DIR/planted-source
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
cd "$root"
git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from=- | tar -x -C "$fresh"
cd "$fresh"
patch -p1 --quiet < "$here/switch.patch"
for patch in "$here"/*.patch; do
  if [ "$(basename "$patch")" != switch.patch ]; then patch -p1 --quiet --no-backup-if-mismatch < "$patch"; fi
done
mkdir -p "$copy"
find . -type f -print0 | while IFS= read -r -d '' file; do
  if ! cmp -s "$file" "$copy/$file"; then
    mkdir -p "$copy/$(dirname "$file")"
    cp "$file" "$copy/$file"
  fi
done
(cd "$copy" && find . -type f -print0) | while IFS= read -r -d '' file; do
  if [ ! -e "$file" ]; then rm "$copy/$file"; fi
done
cd "$copy/broker"
tests=$(cargo test -p weir --lib --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)

# Runs seeds until one fails: sets `found` to what is said of it.
look() {
  found=
  local test told
  for test in the_same_holds_for_a_cluster what_is_acknowledged_is_kept_whatever_goes_wrong; do
    # A failure is what is wanted.
    told=$(WEIR_PLANTED=$1 WEIR_TEST_SEEDS=0..$seeds RUST_BACKTRACE=0 timeout 3600 \
      "$tests" --exact "simulation::$test" 2>&1) || true
    if grep -q '^test result: ok. 1 passed' <<< "$told"; then continue; fi
    local seed
    seed=$(sed -n 's/^failing seed: \([0-9]*\);.*/\1/p' <<< "$told")
    if [ -z "$seed" ]; then echo "$test does not come to an end with '$1'" >&2; continue; fi
    found="seed $seed of $test"
    # What was panicked with, but for what a broken run says of itself afterwards.
    found+=": $(sed -n '/ panicked at /{n;/^\[$/n;s/^ *//p;q}' <<< "$told" | cut -c 1-150)"
    return
  done
}

failed=0
look ""
if [ -n "$found" ]; then
  echo "without a bug: $found"
  failed=1
fi
for name in "${names[@]}"; do
  look "$name"
  echo "$name: ${found:-NOT found}"
  if [ -z "$found" ]; then failed=1; fi
done
exit $failed
