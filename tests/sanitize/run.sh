#!/usr/bin/env bash
# The CPU engine and its rules under AddressSanitizer and UndefinedBehaviorSanitizer, without Python or torch.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/sanitize
mkdir -p "$out"
flags=(-std=c++17 -O1 -g -fno-math-errno -fno-trapping-math -ffp-contract=off -fopenmp -Wall -Wextra
       -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
pids=()
for source in csrc/cpu/*.cpp tests/sanitize/engine_test.cpp; do
  "${CXX:-g++}" "${flags[@]}" -c "$source" -o "$out/$(basename "$source" .cpp).o" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
"${CXX:-g++}" "${flags[@]}" "$out"/*.o -o "$out/engine_test"
# libgomp keeps its thread pool until exit by design.
ASAN_OPTIONS=detect_leaks=0 "$out/engine_test"
