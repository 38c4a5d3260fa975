#!/usr/bin/env bash
# g++ fuses _mm512_mul_ps and _mm512_add_ps into one fma, but not their masked forms: a vector loop and its masked tail differ in bits.
#
# Versions: g++ 12.2.0-14+deb12u1 (Debian 12's packages, unpacked into a temporary folder). Only its assembly is read.
# Guess: an intrinsic is the instruction it is named after, and a masked form is the same instruction under a mask. So the last
#   elements of an array, computed under a mask, are rounded as they would be inside the loop. What -ffp-contract does is about
#   expressions with * and +, which no intrinsic has.
# Behaviour: the header writes plain vector intrinsics as * and + of vectors, so the default -ffp-contract=fast fuses them, across
#   statements too, and rounds once. Masked forms, forms with a rounding mode, and scalar ones (_mm_mul_ss) are builtins that nothing
#   looks into; they round twice. With a mask on the addition alone, nothing is fused either. So an element's bits depend on
#   whether it is in the body or the tail, that is on the array's length. For C++ no -std= changes that, while gcc's -std=c11 turns
#   it off for C. -ffp-contract=off makes all forms alike.
# Output (instructions of a * b + c):
#                         default                 -std=c++17              -ffp-contract=off
#   _mm512_*_ps           vfmadd132ps             vfmadd132ps             vmulps vaddps
#   _mm512_mask_*_ps      vmulps vaddps           vmulps vaddps           vmulps vaddps
#   _mm512_maskz_*_ps     vmulps vaddps           vmulps vaddps           vmulps vaddps
#   mul, then mask_add    vmulps vaddps           vmulps vaddps           vmulps vaddps
#   _mm512_*_round_ps     vmulps vaddps           vmulps vaddps           vmulps vaddps
#   _mm256_*_ps           vfmadd132ps             vfmadd132ps             vmulps vaddps
#   _mm_*_ss              vmulss vaddss           vmulss vaddss           vmulss vaddss
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
. "$(dirname "$0")/tools/gxx_12.sh"
unpack_gxx_12 "$dir"

cat > forms.cc <<'CC'
#include <immintrin.h>
extern "C" {
__m512 plain(__m512 a, __m512 b, __m512 c) { return _mm512_add_ps(_mm512_mul_ps(a, b), c); }
__m512 masked(__mmask16 k, __m512 a, __m512 b, __m512 c) { return _mm512_mask_add_ps(a, k, _mm512_mask_mul_ps(a, k, a, b), c); }
__m512 zeroed(__mmask16 k, __m512 a, __m512 b, __m512 c) { return _mm512_maskz_add_ps(k, _mm512_maskz_mul_ps(k, a, b), c); }
__m512 mixed(__mmask16 k, __m512 a, __m512 b, __m512 c) { return _mm512_mask_add_ps(a, k, _mm512_mul_ps(a, b), c); }
__m512 rounded(__m512 a, __m512 b, __m512 c) { return _mm512_add_round_ps(_mm512_mul_round_ps(a, b, 8), c, 8); }
__m256 narrow(__m256 a, __m256 b, __m256 c) { return _mm256_add_ps(_mm256_mul_ps(a, b), c); }
__m128 scalar(__m128 a, __m128 b, __m128 c) { return _mm_add_ss(_mm_mul_ss(a, b), c); }
}
CC

changed=0
instructions() { # function, options: its arithmetic
  local name=$1
  shift
  # mm_malloc.h asks for the C library's headers, of which nothing here has need.
  "$tools/cc1plus" -quiet -O2 -march=skylake-avx512 \
    -nostdinc -isystem "$tools/include" -D_MM_MALLOC_H_INCLUDED "$@" forms.cc -o - 2> errors |
    sed -n "/^$name:/,/\\bret\\b/p" | grep -oE '\bv(mul|add|fmadd[0-9]+)[ps]s\b' | xargs
}
form() { # title, function, expected by default and with -std=c++17, expected with -ffp-contract=off
  local found=("$(instructions "$2")" "$(instructions "$2" -std=c++17)" "$(instructions "$2" -ffp-contract=off)")
  printf '%-21s %-23s %-23s %s\n' "$1" "${found[@]}"
  [ "${found[0]}" = "$3" ] && [ "${found[1]}" = "$3" ] && [ "${found[2]}" = "$4" ] || changed=1
}
printf '%-21s %-23s %-23s %s\n' "" default -std=c++17 -ffp-contract=off
form "_mm512_*_ps" plain vfmadd132ps "vmulps vaddps"
form "_mm512_mask_*_ps" masked "vmulps vaddps" "vmulps vaddps"
form "_mm512_maskz_*_ps" zeroed "vmulps vaddps" "vmulps vaddps"
form "mul, then mask_add" mixed "vmulps vaddps" "vmulps vaddps"
form "_mm512_*_round_ps" rounded "vmulps vaddps" "vmulps vaddps"
form "_mm256_*_ps" narrow vfmadd132ps "vmulps vaddps"
form "_mm_*_ss" scalar "vmulss vaddss" "vmulss vaddss"
if [ "$changed" = 1 ]; then
  echo "the behaviour has changed" >&2
  exit 1
fi
