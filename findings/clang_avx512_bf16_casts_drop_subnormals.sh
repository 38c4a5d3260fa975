#!/usr/bin/env bash
# For a processor with AVX512_BF16, clang's cast of a float to __bf16 makes 0 of every subnormal, at -O0 and without any fast math.
#
# Versions: clang 19.1.7-3~deb12u1 (Debian 12's packages, unpacked into a temporary folder). Only its assembly is read.
# Guess: without -ffast-math a cast gives the nearest value, whatever the processor; -march chooses the instructions, not the numbers.
#   The new instruction vcvtneps2bf16 takes subnormals as 0 and makes 0 of them (Intel's manual: whatever MXCSR says), so it is for intrinsics and
#   for -ffast-math, and a cast is rounded by integers or by the library.
# Behaviour: as soon as the processor has the instruction for the width at hand, the cast is that instruction: -march=znver4 and
#   sapphirerapids, but not znver3 and skylake-avx512. bfloat16 has float's exponents, so a gradient's square, or a small EMA, that a
#   bfloat16 can hold below 2^-126 is lost on one machine's build and kept on another's, and so is a sum of two __bf16. Constants are folded
#   as IEEE says: 1e-39 written down stays 1e-39, and the same number read from memory becomes 0. -fdenormal-fp-math=ieee and
#   -ffp-model=precise change nothing; -ffp-model=strict calls the library.
# Output (what makes a __bf16 of a float, of 16 floats, of a sum of two __bf16; and the constant 1e-39, whose nearest bfloat16 is 0x000b):
#                                              one            sixteen        a sum          constant
#   -march=skylake-avx512                      __truncsfbf2   __truncsfbf2   __truncsfbf2   0x000b
#   -march=znver3                              __truncsfbf2   __truncsfbf2   __truncsfbf2   0x000b
#   -march=znver4                              vcvtneps2bf16  vcvtneps2bf16  vcvtneps2bf16  0x000b
#   -march=sapphirerapids                      vcvtneps2bf16  vcvtneps2bf16  vcvtneps2bf16  0x000b
#   -march=znver4 -O0                          vcvtneps2bf16  vcvtneps2bf16  vcvtneps2bf16  0x000b
#   -march=znver4 -fdenormal-fp-math=ieee      vcvtneps2bf16  vcvtneps2bf16  vcvtneps2bf16  0x000b
#   -march=znver4 -ffp-model=precise           vcvtneps2bf16  vcvtneps2bf16  vcvtneps2bf16  0x000b
#   -march=znver4 -ffp-model=strict            __truncsfbf2   __truncsfbf2   __truncsfbf2   0x000b
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
# Libraries that clang only links to come as they are; they decide on no instruction.
version=1:19.1.7-3~deb12u1
lists=(-o "Dir::State::lists=$dir/lists" -o APT::Sandbox::User=root)
mkdir -p lists/partial root
apt-get -qq "${lists[@]}" update > /dev/null
apt-get -qq "${lists[@]}" download clang-19=$version libclang-cpp19=$version libllvm19=$version \
  libedit2 libz3-4 libzstd1 libxml2 libicu72 libtinfo6 libbsd0 libmd0 libffi8 zlib1g liblzma5 > /dev/null
for package in ./*.deb; do dpkg-deb -x "$package" root; done
multiarch=x86_64-linux-gnu
export LD_LIBRARY_PATH="$dir/root/usr/lib/$multiarch:$dir/root/lib/$multiarch"

cat > casts.cc <<'CC'
typedef float floats __attribute__((vector_size(64)));
typedef __bf16 bf16s __attribute__((vector_size(32)));
extern "C" __bf16 one(float a) { return (__bf16)a; }
extern "C" bf16s sixteen(floats a) { return __builtin_convertvector(a, bf16s); }
extern "C" __bf16 sum(__bf16 a, __bf16 b) { return a + b; }
extern "C" const __bf16 constant = (__bf16)1e-39f;
CC
changed=0
made_by() { # function: what its assembly rounds with
  awk -v name="$1:" '$1 == name { inside = 1 } /^\.Lfunc_end/ { inside = 0 } inside' casts.s |
    grep -oE 'vcvtneps2bf16|__truncsfbf2' | sort -u | paste -sd+
}
row() { # expected, options
  "$dir/root/usr/bin/clang-19" --target=x86_64-linux-gnu -O2 "${@:2}" -S casts.cc -o casts.s 2> errors
  local one sixteen sum constant
  one=$(made_by one) sixteen=$(made_by sixteen) sum=$(made_by sum)
  constant=$(grep -A1 '^constant:' casts.s | grep -oE '0x[0-9a-f]+')
  printf '%-42s %-14s %-14s %-14s %s\n' "${*:2}" "$one" "$sixteen" "$sum" "$constant"
  [ "$one $sixteen $sum $constant" = "$1 $1 $1 0x000b" ] || changed=1
}
row __truncsfbf2 -march=skylake-avx512
row __truncsfbf2 -march=znver3
row vcvtneps2bf16 -march=znver4
row vcvtneps2bf16 -march=sapphirerapids
row vcvtneps2bf16 -march=znver4 -O0
row vcvtneps2bf16 -march=znver4 -fdenormal-fp-math=ieee
row vcvtneps2bf16 -march=znver4 -ffp-model=precise
row __truncsfbf2 -march=znver4 -ffp-model=strict
if [ "$changed" = 1 ]; then
  echo "the behaviour has changed" >&2
  exit 1
fi
