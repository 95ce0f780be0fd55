#!/bin/bash
# All set-up, then the build: Debian packages, a virtual environment with the pinned LibTorch wheel
# and CMake (.venv), configure, compile. What is there already is left alone, so a second call takes
# seconds. usage: launch/setup.sh [BUILD_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

packages=(
  g++ make ninja-build ccache mold ca-certificates python3 python3-venv
  openmpi-bin libopenmpi-dev libhdf5-dev libyaml-cpp-dev libspdlog-dev libfmt-dev
  libcli11-dev nlohmann-json3-dev libgtest-dev libxxhash-dev
)

install_packages() {
  if ! command -v dpkg-query > /dev/null; then
    say "no dpkg here; install the counterparts of: ${packages[*]} (CMake names what it misses)"
    return
  fi
  local missing=() package
  for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2> /dev/null | grep -q 'install ok installed' ||
      missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    fail "missing packages; as root: apt-get install ${missing[*]}"
  fi
  say "installing ${missing[*]}"
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

make_venv() {
  local python=/usr/bin/python3 wanted
  [ -x $python ] || python=python3
  wanted=$(sha256sum < requirements.txt)
  [ "$(cat .venv/requirements.sha256 2> /dev/null || true)" != "$wanted" ] || return 0
  $python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "needs Python 3.11 or later, $python is $($python --version)"
  say "creating .venv with LibTorch and CMake (about 3 GB of wheels from PyPI, once)"
  $python -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt
  echo "$wanted" > .venv/requirements.sha256
}

report() {
  local gpu
  gpu=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true)
  if [ -n "$(find_nvcc)" ]; then say "nvcc: $(find_nvcc), CUDA code is built"
  else say "nvcc: none, so this is a CPU build (a CUDA 13 toolkit makes it a CUDA build)"; fi
  if [ "$gpu" -gt 0 ]; then say "GPUs: $gpu"
  else say "GPUs: none, tests that need one are skipped"; fi
  say "LibTorch: $(.venv/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))')" \
    "in .venv; ccache: $(command -v ccache || echo none); cores: $(nproc)"
}

find_nvcc() {
  command -v nvcc || ls "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" 2> /dev/null || true
}

install_packages
make_venv
if [ ! -f "$build/build.ninja" ]; then
  report
  .venv/bin/cmake -S . -B "$build" -G Ninja -DSALA_PYTHON="$PWD/.venv/bin/python"
fi
.venv/bin/cmake --build "$build"
say "built: $(cd "$build/bin" 2> /dev/null && ls | sed "s|^|$build/bin/|" | tr '\n' ' ')"
