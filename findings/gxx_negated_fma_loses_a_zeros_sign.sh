#!/usr/bin/env bash
# -fma(b, q, -a) of 0 is -0, and g++ -O2 -mfma makes it 0, without any option that lets it forget the sign of a zero.
#
# Versions: g++ 12.2.0 (Debian 12), x86-64.
# Guess: without -ffast-math g++ keeps the sign of a zero; at most -ffp-contract lets it fuse, and here that is off.
# Behaviour: from -O1 on, with a processor's fma to use, the negation goes into the instruction: a - b q in place of -(b q - a). Both
#   are the same number but where it is 0: a difference of equal numbers is +0, so the first is +0 and the second -0. A
#   residual on whose zero's sign a quotient of -0 rests came out as +0 (csrc/cuda/guarded.cuh). Negating another factor says
#   the same and is left alone.
# Output (-fma(b, q, -a), and the same by way of a volatile, which hides the negation; a = q = -0, b = 1):
#   -O0                        -0 -0
#   -O2                        -0 -0
#   -O2 -mfma                   0 -0
#   -O2 -mfma -fsigned-zeros    0 -0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat > "$dir/zero.cpp" <<'CPP'
#include <cmath>
#include <cstdio>

volatile float a = -0.0f, b = 1.0f, q = -0.0f, hidden;

int main() {
  const float seen = -std::fma(b, q, -a);
  hidden = std::fma(b, q, -a);
  std::printf("%2g %2g\n", seen, -hidden);
}
CPP
for flags in "-O0" "-O2" "-O2 -mfma" "-O2 -mfma -fsigned-zeros"; do
  # shellcheck disable=SC2086
  g++ $flags -ffp-contract=off "$dir/zero.cpp" -o "$dir/zero"
  printf '%-26s %s\n' "$flags" "$("$dir/zero")"
done
