"""nvcc takes what the CUDA engine is made of, where a build has left that to others.

`make test` builds kernels for GPUs that are there. Where there is none, this is what it asks nvcc; g++ compiles every
rule's kernels for the emulator, and `make build` and `make test-all` all of it by nvcc.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from build import ROOT

from fusedopt import _C, _toolchain

if _C.cuda_built():
    pytest.skip("the build has compiled them", allow_module_level=True)


def commands(architecture: str, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """With the kernels of one rule, which has sums: what they are made of knows no rule."""
    monkeypatch.delenv("FUSEDOPT_CUDA")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architecture)
    tree, cuda = _toolchain.Tree(ROOT), _toolchain.Cuda()
    if not cuda.nvcc:
        pytest.skip(cuda.missing)
    monkeypatch.setattr(tree, "rules", lambda: [_toolchain.Rule("LAMB", "lamb.h", sums=True)])
    return tree.cuda_commands(cuda)


# From 10.0 on there are accesses of 32 bytes, which the update alone has.
@pytest.mark.parametrize(("architecture", "among"), [("8.0", ".cu"), ("10.0", "/rule.cu")])
def test_nvcc_takes_every_source(
    architecture: str, among: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as PTX: the machine code of it takes most of the time, and is one program's work for all sources."""
    taken = [command for command in commands(architecture, monkeypatch) if command[-1].endswith(among)]
    assert taken
    for command in taken:
        to_ptx = [word if word != "-c" else "--ptx" for word in command]
        done = subprocess.run([*to_ptx, "-o", str(tmp_path / "it.ptx")], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
