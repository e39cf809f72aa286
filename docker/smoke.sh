#!/usr/bin/env bash
# Tries an image as README.md beside this file says to use it: smoke.sh IMAGE [OPTION OF `docker run`]...
set -euo pipefail

image=$1
shift
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
mkdir "$here/data" "$here/runs"
container() {
    "${DOCKER:-docker}" run --rm --user "$(id -u):$(id -g)" \
        -v "$here/data:/srv/data" -v "$here/runs:/srv/runs" "${options[@]}" "$image" "$@"
}

options=("$@" --entrypoint python)
container -c '
import sys, torch
wanted, found = "--gpus" in sys.argv, torch.cuda.is_available()
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, GPU {torch.cuda.get_device_name() if found else None}")
sys.exit(wanted and not found and "no GPU inside the container")
' "$@"
if [ "$("${DOCKER:-docker}" run --rm --entrypoint id "$image" -u)" = 0 ]; then
    echo "the image runs as root" >&2
    exit 1
fi

options=("$@")
container fit --config recipes/demo.yaml
for run in "$here"/runs/demo/*; do
    test -s "$run/weights.parquet" -a -O "$run/weights.parquet"
    container test "runs/demo/${run##*/}"
    container predict "runs/demo/${run##*/}"
    test -s "$run/predictions-test.parquet"
done
echo "$image works"
