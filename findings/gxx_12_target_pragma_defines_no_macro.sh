#!/usr/bin/env bash
# Below `#pragma GCC target("avx2")` g++ 12 emits AVX2 instructions, but __AVX2__ is undefined; gcc 12 defines it there.
#
# Versions: g++ 12.2.0-14+deb12u1, cpp-12 of the same (Debian 12's packages, unpacked into a temporary folder). Only assembly is read.
# Guess: the pragma's macros follow the pragma in either language, as <immintrin.h> itself counts on __AVX2__ to know what is on;
#   so an #ifdef __AVX2__ below it picks the vector code, and one program in both languages is the same.
# Behaviour: the C front end defines __AVX2__ and __FMA__ from the pragma on. The C++ front end has read and preprocessed all of the
#   file before it acts on the pragma: the macros stay undefined to the end, while instructions and intrinsics of the pragma's target
#   are compiled. So code that is chosen by these macros is left out without a word, and only in C++. A command line's -mavx2 defines
#   them in both, and a pragma that takes instructions away does not undefine them in C++ either.
# Output:
#                            gcc 12         g++ 12
#   pragma avx2,fma          defined        undefined
#   -mavx2                   defined        defined
#   -mavx2, pragma no-avx2   undefined      defined
#   ymm code below pragma    yes            yes
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
. "$(dirname "$0")/tools/gxx_12.sh"
unpack_gxx_12 "$dir" cpp-12

cat > asked.c <<'C'
#ifdef PRAGMA
#define TEXT_OF(x) #x
#define TARGET(x) _Pragma(TEXT_OF(GCC target(x)))
TARGET(PRAGMA)
#endif
#ifdef __AVX2__
int defined;
#else
int undefined;
#endif
typedef float vector __attribute__((vector_size(32)));
void add(vector* a, const vector* b) { *a += *b; }
C

of() { # front end, options
  local front=$1
  shift
  "$tools/$front" -quiet -O2 -nostdinc "$@" asked.c -o - 2> errors
}
changed=0
row() { # title, expected of C, expected of C++, options
  local title=$1 in_c in_cxx
  in_c=$(of cc1 "${@:4}" | grep -oxE '(un)?defined:' | tr -d :)
  in_cxx=$(of cc1plus "${@:4}" | grep -oxE '(un)?defined:' | tr -d :)
  printf '%-24s %-14s %s\n' "$title" "$in_c" "$in_cxx"
  [ "$in_c" = "$2" ] && [ "$in_cxx" = "$3" ] || changed=1
}
wide() { of "$1" '-DPRAGMA="avx2,fma"' | grep -q ymm && echo yes || echo no; }
printf '%-24s %-14s %s\n' "" "gcc 12" "g++ 12"
row "pragma avx2,fma" defined undefined '-DPRAGMA="avx2,fma"'
row "-mavx2" defined defined -mavx2
row "-mavx2, pragma no-avx2" undefined defined -mavx2 '-DPRAGMA="no-avx2"'
found=("$(wide cc1)" "$(wide cc1plus)")
printf '%-24s %-14s %s\n' "ymm code below pragma" "${found[@]}"
[ "${found[*]}" = "yes yes" ] || changed=1
if [ "$changed" = 1 ]; then
  echo "the behaviour has changed" >&2
  exit 1
fi
