// What every kernel is written with: storage types, reductions in a fixed order, and names that both compilers know.
//
// nvcc compiles the kernels for the GPU. A host compiler compiles the very same sources against `emulator.hpp`, where the threads of a block
// take turns on one CPU thread: that is how the kernels are tested on machines without a GPU.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#define DEVICE __device__ __forceinline__
#define SHARED(type, name, count) __shared__ type name[count]
// Dynamic shared memory, 16-byte aligned; its size is given at launch.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
template <class T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
template <class T> DEVICE T shuffle_xor(T value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(uint32_t x) { return __uint_as_float(x); }

// d += a b of a warp: a is 16 x 16 (row-major), b is 16 x 8 (column-major), d is 16 x 8 in f32. With group = lane / 4 and pair = lane % 4 a lane
// holds d of rows group and group + 8 at columns 2 pair, 2 pair + 1 (d0 d1, d2 d3); of a the columns 2 pair, 2 pair + 1 of these rows (a0, a1) and
// the same + 8 (a2, a3); of b the rows 2 pair, 2 pair + 1 (b0) and + 8 (b1) at column group. Each register holds two bf16, the first in its low half.
DEVICE void multiply_add_tile(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
#include "emulator.hpp"
using std::min;
using std::max;
#endif

DEVICE uint32_t pack_bf16(float low, float high) {
  bf16 pair[2] = {from_float<bf16>(low), from_float<bf16>(high)};
  uint32_t bits;
  memcpy(&bits, pair, 4);
  return bits;
}

// 16 bytes of values, moved at once.
template <class T> struct alignas(16) Pack {
  static constexpr int SIZE = 16 / sizeof(T);
  T values[SIZE];
};

DEVICE float sum_warp(float value) {
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

DEVICE float max_warp(float value) {
  for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

// The sum over a block of whole warps (1,024 threads at most), known to every thread. `scratch` holds 32 values.
DEVICE float sum_block(float value, float* scratch) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = (blockDim.x + 31) / 32;
  value = sum_warp(value);
  if (n_warps == 1) return value;
  sync_block();
  if (lane == 0) scratch[warp] = value;
  sync_block();
  return sum_warp(lane < n_warps ? scratch[lane] : 0.0f);
}

DEVICE float max_block(float value, float* scratch) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = (blockDim.x + 31) / 32;
  value = max_warp(value);
  if (n_warps == 1) return value;
  sync_block();
  if (lane == 0) scratch[warp] = value;
  sync_block();
  return max_warp(lane < n_warps ? scratch[lane] : -INFINITY);
}
