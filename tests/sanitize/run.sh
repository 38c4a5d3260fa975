#!/usr/bin/env bash
# Both engines and their rules under the sanitizers, without Python, torch or a GPU. AddressSanitizer and
# UndefinedBehaviorSanitizer watch the CPU engine and the CUDA engine on the emulated device; ThreadSanitizer watches
# the threads of the latter's blocks.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$PWD/build/sanitize
cxx=${CXX:-g++}
flags=(-std=c++17 -O1 -g -fno-math-errno -fno-trapping-math -ffp-contract=off -fopenmp -Wall -Wextra
       -Wno-unknown-pragmas -fno-omit-frame-pointer "-I$PWD/tests/cuda_emulator")
cpu=("$PWD"/csrc/cpu/*.cpp)
emulated=()
for source in "$PWD"/tests/cuda_emulator/*.cpp; do
  # This one is for Python.
  [[ $source == */control.cpp ]] || emulated+=("$source")
done

# compile FOLDER SOURCE... -- FLAG...: each source into an object in the folder, as many at a time as there are cores.
compile() {
  local folder=$1 sources=()
  shift
  while [[ $1 != -- ]]; do
    sources+=("$1")
    shift
  done
  shift
  rm -rf "$folder"
  mkdir -p "$folder"
  (cd "$folder" && printf '%s\0' "${sources[@]}" |
    xargs -0 -n 1 -P "$(getconf _NPROCESSORS_ONLN)" "$cxx" "${flags[@]}" "$@" -c)
}

# link FOLDER PROGRAM FLAG... -- SOURCE...: the sources' objects into the program, which has a source of its own.
link() {
  local folder=$1 program=$2 options=() objects=()
  shift 2
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  for source in "$@" "$program.cpp"; do objects+=("$folder/$(basename "$source" .cpp).o"); done
  "$cxx" "${flags[@]}" "${options[@]}" "${objects[@]}" -o "$folder/$program"
}

tests=$PWD/tests/sanitize
address=(-fsanitize=address,undefined -fno-sanitize-recover=all)
# The largest first.
compile "$out/address" "${emulated[@]}" "${cpu[@]}" "$tests"/{engine_test,cuda_engine_test}.cpp -- "${address[@]}"
link "$out/address" engine_test "${address[@]}" -- "${cpu[@]}"
link "$out/address" cuda_engine_test "${address[@]}" -- "${cpu[@]}" "${emulated[@]}"
# libgomp keeps its thread pool until exit by design.
ASAN_OPTIONS=detect_leaks=0 "$out/address/engine_test"
"$out/address/cuda_engine_test"

thread=(-fsanitize=thread)
compile "$out/thread" "${emulated[@]}" "${cpu[@]}" "$tests/cuda_engine_test.cpp" -- "${thread[@]}" \
  -DFUSEDOPT_GENERIC_ONLY
link "$out/thread" cuda_engine_test "${thread[@]}" -- "${cpu[@]}" "${emulated[@]}"
export TSAN_OPTIONS=halt_on_error=1
if ! "$out/thread/cuda_engine_test" 2>"$out/thread/errors"; then
  cat "$out/thread/errors" >&2
  # Where the system spreads a process over its address space further than ThreadSanitizer can follow.
  grep -q "unexpected memory mapping" "$out/thread/errors"
  setarch "$(uname -m)" -R "$out/thread/cuda_engine_test"
fi
