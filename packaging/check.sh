#!/usr/bin/env bash
# Installs the wheels as users do, each in a fresh environment, and captions a photo from another folder, offline:
# captioner with its bundled model, and captioner-onnx, without torch, with what captioner exported.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
photo=$PWD/examples/photos/dune.jpg
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$python" -m venv "$scratch/build"
"$scratch/build/bin/pip" install --quiet build
"$scratch/build/bin/python" -m build --quiet --outdir "$scratch/dist" .
"$scratch/build/bin/python" -m build --quiet --wheel --outdir "$scratch/dist" packaging/onnx
ls -l "$scratch/dist"

install() {  # ENVIRONMENT REQUIREMENT...
    "$python" -m venv "$scratch/$1"
    "$scratch/$1/bin/pip" install --quiet "${@:2}"
}

offline() {  # COMMAND...: without a network where this user may take it away, and in an empty folder
    mkdir -p "$scratch/elsewhere"
    cd "$scratch/elsewhere"
    if unshare --map-root-user --net true 2>/dev/null; then
        unshare --map-root-user --net "$@"
    else
        HF_HUB_OFFLINE=1 "$@"
    fi
    cd "$OLDPWD"
}

wheel=$(echo "$scratch"/dist/captioner-[0-9]*.whl)
install full "captioner[export] @ file://$wheel"
offline "$scratch/full/bin/captioner" annotate "$photo"
offline "$scratch/full/bin/captioner" recipes tiny > "$scratch/tiny.yaml"
cmp "$scratch/tiny.yaml" configs/tiny.yaml
offline "$scratch/full/bin/captioner" export default "$scratch/exported"

install server "$scratch"/dist/captioner_onnx-*.whl
if "$scratch/server/bin/python" -c "import torch" 2>/dev/null; then
    echo "error: captioner-onnx installs torch" >&2
    exit 1
fi
offline "$scratch/server/bin/captioner" annotate "$photo" --model "$scratch/exported"
offline "$scratch/server/bin/captioner" env
offline "$scratch/server/bin/python" -c "
from captioner import Captioner
print(Captioner.from_pretrained('$scratch/exported')('$photo').text)"
