// Stands in for the CUDA toolkit's header of this name, so that g++ compiles kernels and their launchers as they are
// and the CPU runs them: the language's words and types are here, what kernels call in device.h, what launchers call in
// host.h, what only tests call in emulator.h.
#pragma once

// The standard library spells attributes with __noinline__ in <memory>, which the macro below would break; included
// here, it is past that when the macro comes.
#include <memory>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
// One block runs at a time, so one copy serves them all. The attribute puts it where shared.cpp finds it.
#if defined(__has_attribute) && !defined(__clang__)
#if __has_attribute(noinit)
#define __shared__ static __attribute__((noinit))
#endif
#endif
#ifndef __shared__
#define __shared__ static
#endif

#define CUDART_VERSION 13000

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;

  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// Kernels read memory of other types through the vector types, as nvcc lets them.
struct alignas(8) [[gnu::may_alias]] uint2 {
  unsigned x, y;
};
struct alignas(16) [[gnu::may_alias]] uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) [[gnu::may_alias]] float2 {
  float x, y;
};
struct alignas(16) [[gnu::may_alias]] float4 {
  float x, y, z, w;
};

constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
constexpr float2 make_float2(float x, float y) { return {x, y}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Where the running thread stands. The emulator sets them whenever it resumes a thread; initial-exec keeps a read of
// them at one instruction inside a shared library.
inline thread_local uint3 threadIdx __attribute__((tls_model("initial-exec")));
inline thread_local uint3 blockIdx __attribute__((tls_model("initial-exec")));
inline thread_local dim3 blockDim __attribute__((tls_model("initial-exec")));
inline thread_local dim3 gridDim __attribute__((tls_model("initial-exec")));
constexpr int warpSize = 32;

#include "device.h"
#include "host.h"
