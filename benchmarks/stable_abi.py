"""What a tensor costs to look at through torch's stable ABI, and through its C++ headers as the bindings do it.

python benchmarks/stable_abi.py [--out FILE]

What is compiled both ways takes a list of tensors of 256 elements and reads of each what a step reads: its address,
element type, device, sizes and strides. Also whether a write by an operator of the stable ABI is told to autograd (the
version counter), and what `torch.autograd.graph.increment_version` costs, which would tell it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fusedopt import _toolchain
from fusedopt.bench.machine import machine

COUNT, ROUNDS = 1000, 200
STABLE = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
using torch::stable::Tensor;
int64_t look(std::vector<Tensor> tensors) {
  int64_t sum = 0;
  for (const Tensor& t : tensors) {
    sum += reinterpret_cast<int64_t>(t.const_data_ptr()) + static_cast<int64_t>(t.scalar_type()) + t.numel();
    sum += static_cast<int64_t>(t.device().type());
    for (int64_t size : t.sizes()) sum += size;
    for (int64_t stride : t.strides()) sum += stride;
  }
  return sum;
}
STABLE_TORCH_LIBRARY(fusedopt_stable, m) {
  m.def("look(Tensor[] tensors) -> int");
  m.def("write(Tensor(a!) tensor) -> int");
}
int64_t write_one(Tensor tensor) { return *static_cast<float*>(tensor.mutable_data_ptr()) += 1; }
STABLE_TORCH_LIBRARY_IMPL(fusedopt_stable, CompositeExplicitAutograd, m) {
  m.impl("look", TORCH_BOX(&look));
  m.impl("write", TORCH_BOX(&write_one));
}
"""
HEADERS = """
#include <torch/csrc/autograd/python_variable.h>
extern "C" int64_t look(PyObject* list) {
  int64_t sum = 0;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
    const c10::TensorImpl& t = *THPVariable_Unpack(PyList_GET_ITEM(list, i)).unsafeGetTensorImpl();
    sum += reinterpret_cast<int64_t>(t.data()) + static_cast<int64_t>(c10::typeMetaToScalarType(t.dtype())) + t.numel();
    sum += static_cast<int64_t>(t.device().type());
    for (int64_t size : t.sizes()) sum += size;
    for (int64_t stride : t.strides()) sum += stride;
  }
  return sum;
}
"""


def compiled(text: str, name: str, folder: Path, flags: list[str]) -> Path:
    source, made, target = (folder / f"{name}.{ending}" for ending in ("cpp", "o", "so"))
    source.write_text(text)
    _toolchain.run([*_toolchain.torch_cpp_command(source, [*flags, "-fvisibility=default"]), "-o", str(made)], folder)
    _toolchain.link_bindings([made], target)
    return target


def nanoseconds(call: Callable[[], object], count: int) -> float:
    """The median of rounds, for each of so many things."""
    found = []
    for _ in range(ROUNDS):
        begun = time.perf_counter_ns()
        call()
        found.append((time.perf_counter_ns() - begun) / count)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    major, minor, *_ = torch.__version__.split(".")
    tensors = [torch.zeros(16, 16) for _ in range(COUNT)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        version = f"-DTORCH_TARGET_VERSION=0x{int(major):02x}{int(minor):02x}000000000000"
        torch.ops.load_library(compiled(STABLE, "stable", folder, [version]))
        look = ctypes.PyDLL(str(compiled(HEADERS, "headers", folder, []))).look
    look.argtypes, look.restype = [ctypes.py_object], ctypes.c_int64
    stable = torch.ops.fusedopt_stable
    assert stable.look(tensors) == look(tensors)
    before = tensors[0]._version
    stable.write(tensors[0])
    told = tensors[0]._version != before

    def versions() -> None:
        torch.autograd.graph.increment_version(tensors)

    def of_one(tensor: Tensor) -> Callable[[], object]:
        return lambda: stable.look([tensor])

    facts = {
        "machine": machine(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "tensors": COUNT,
        "nanoseconds a tensor": {
            "stable ABI": round(nanoseconds(lambda: stable.look(tensors), COUNT), 1),
            "headers": round(nanoseconds(lambda: look(tensors), COUNT), 1),
            "increment_version": round(nanoseconds(versions, COUNT), 1),
        },
        "nanoseconds a call": {"stable ABI": round(nanoseconds(of_one(tensors[0]), 1))},
        "a write is told to autograd": told,
    }
    print(json.dumps({key: value for key, value in facts.items() if key != "machine"}, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
