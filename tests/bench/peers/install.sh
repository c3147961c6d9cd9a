#!/bin/sh
# The peers of `edge-runtime bench training` and `bench fleet`, each where it disturbs nobody: three virtual environments
# and one program under build/peers. A peer that cannot be had is named, and the bench says so in its row.
set -eu
cd "$(dirname "$0")/../../.."
python=${PYTHON:-python3}
out=build/peers
mkdir -p $out
failed=

environment() { # NAME PACKAGE...
  name=$1; shift
  [ -e $out/$name/done ] && return
  rm -rf "$out/$name"
  { "$python" -m venv "$out/$name" && "$out/$name/bin/pip" install --quiet --disable-pip-version-check "$@" &&
    touch "$out/$name/done"; } || failed="$failed $name"
}

# 1.19.2 is the last release; its wheels end at Python 3.11 and want a numpy and an onnx of their time.
environment ort onnxruntime-training==1.19.2 'numpy<2' onnx==1.16.2
environment mnn MNN==3.6.1 numpy
environment flower 'flwr>=1.41,<1.43' 'numpy<2.5'
# Flower's clients train with the torch of the tests.
[ ! -e $out/flower/done ] || "$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
  > "$(echo $out/flower/lib/python3*/site-packages)/torch.pth"

dlib() {
  pkg-config --exists dlib-1 blas || [ "$(id -u)" != 0 ] || apt-get install --quiet --yes libdlib-dev libopenblas-dev pkg-config
  pkg-config --exists dlib-1 blas || { echo "dlib: as root, apt-get install libdlib-dev libopenblas-dev, then make bench-peers again" >&2; return 1; }
  # shellcheck disable=SC2046 (flags are words)
  c++ -std=c++14 -O3 -march=native -DNDEBUG tests/bench/peers/dlib_child.cpp -o $out/dlib_child $(pkg-config --libs dlib-1)
}
[ $out/dlib_child -nt tests/bench/peers/dlib_child.cpp ] || dlib || failed="$failed dlib"

[ -z "$failed" ] || { echo "not installed:$failed" >&2; exit 1; }
