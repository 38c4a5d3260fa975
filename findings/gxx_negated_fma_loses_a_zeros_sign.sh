#!/usr/bin/env bash
# -fma(b, q, -a) of 0 is -0, and g++ -O2 -mfma makes it 0, without any option that lets it forget the sign of a zero.
#
# Versions: g++ 12.2.0-14+deb12u1 (Debian 12's packages, unpacked into a temporary folder). Only its assembly is read.
# Guess: without -ffast-math g++ keeps the sign of a zero; at most -ffp-contract lets it fuse, and here that is off. So the negation of
#   a fused product and sum stays an instruction of its own, or one that rounds and signs alike.
# Behaviour: with a processor's fma to use, the negation goes into the instruction: vfnmadd, a - b q, in place of -(b q - a). Both are
#   the same number but where it is 0: a difference of equal numbers is +0, so the first is +0 and the second -0, as of b = 1 and
#   a = q = -0. Nothing says that signs of zeros may be forgotten: -fsigned-zeros, the default, changes nothing. Without -mfma
#   the library's fma is called and its result negated. Where a quotient's residual decides on the sign of a 0, it is lost.
# Output (what the last step of -fma(b, q, -a) is):
#   -O0 -mfma                  xor of the sign
#   -O2                        xor of the sign
#   -O2 -mfma                  vfnmadd
#   -O2 -mfma -fsigned-zeros   vfnmadd
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
. "$(dirname "$0")/tools/gxx_12.sh"
unpack_gxx_12 "$dir"

echo 'float residual(float a, float b, float q) { return -__builtin_fmaf(b, q, -a); }' > residual.cc
changed=0
row() { # expected, options
  local made found
  made=$("$tools/cc1plus" -quiet -ffp-contract=off "${@:2}" residual.cc -o - 2> errors)
  if grep -q vfnmadd <<< "$made"; then found=vfnmadd; elif grep -qE 'xorps' <<< "$made"; then found="xor of the sign"; else found=neither; fi
  printf '%-26s %s\n' "${*:2}" "$found"
  [ "$found" = "$1" ] || changed=1
}
row "xor of the sign" -O0 -mfma
row "xor of the sign" -O2
row vfnmadd -O2 -mfma
row vfnmadd -O2 -mfma -fsigned-zeros
if [ "$changed" = 1 ]; then
  echo "the behaviour has changed" >&2
  exit 1
fi
