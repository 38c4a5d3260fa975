#!/usr/bin/env bash
# An image that ptxas makes for sm_100 or later holds a second form of each kernel, so it is a fifth larger for the same code.
#
# Versions: nvidia-cuda-nvcc 13.0.88.
# Guess: a cubin is machine code and tables. For sm_100 it is as large as for sm_90, where the machine code has as many bytes.
# Behaviour: from sm_100 on there is a second form of each kernel beside its machine code, in a section .nv.capmerc.text ("capsule
#   mercury", from which a driver may make code anew), with its own tables of symbols, relocations and frames. sm_90 and older have
#   none. It is in no help text; what chooses it (--binary-kind) is not documented either. Whoever weighs
#   a wheel with many kernels meets it: this project's images, compressed, are a sixth larger for sm_100 and sm_120.
# Output (bytes of machine code, of the second form with its tables, and of the cubin):
#   sm_80    18304      0  21544
#   sm_90    16384      0  20272
#   sm_100   16384   3162  24584
#   sm_120   16384   3162  24584
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet nvidia-cuda-nvcc==13.0.88

"$dir/venv/bin/python" - "$dir" <<'PY'
import re
import struct
import subprocess
import sys
from pathlib import Path

folder = Path(sys.argv[1])
(ptxas,) = folder.glob("venv/lib/python3*/site-packages/nvidia/**/bin/ptxas")
root = "sqrt.rn.f32 %f1, %f1;\n div.rn.f32 %f1, %f2, %f1;\n"
kernel = f"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry kernel(.param .u64 out)
{{
 .reg .f32 %f<3>;
 .reg .u64 %rd<3>;
 ld.param.u64 %rd1, [out];
 cvta.to.global.u64 %rd2, %rd1;
 ld.global.f32 %f1, [%rd2];
 ld.global.f32 %f2, [%rd2+4];
 {root * 40}
 st.global.f32 [%rd2], %f1;
 ret;
}}
"""
source = folder / "kernel.ptx"
source.write_text(kernel)


def sections(elf: bytes):
    offset, size, count, names = *struct.unpack_from("<Q", elf, 40), *struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, offset + at * size) for at in range(count)]
    for name, kind, _, _, _, length in headers:
        begin = headers[names][4] + name
        if kind != 8:  # without bytes in the file
            yield elf[begin : elf.index(b"\0", begin)].decode(), length


changed = False
for arch in ("sm_80", "sm_90", "sm_100", "sm_120"):
    image = folder / f"{arch}.cubin"
    subprocess.run([ptxas, f"-arch={arch}", source, "-o", image], check=True)
    found = list(sections(image.read_bytes()))
    code = sum(length for name, length in found if name.startswith(".text"))
    second = sum(length for name, length in found if re.match(r"\.nv\.(cap)?merc", name))
    print(f"{arch:7} {code:6} {second:6} {image.stat().st_size:6}")
    changed |= (second > 0) != (arch in ("sm_100", "sm_120"))
told = subprocess.run([ptxas, "--help"], capture_output=True, text=True).stdout
changed |= bool(re.search("merc|binary-kind", told))
if changed:
    sys.exit("the behaviour has changed")
PY
