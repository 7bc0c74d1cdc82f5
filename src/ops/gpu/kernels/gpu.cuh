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
// With the block's threads, and how many blocks shall fit a multiprocessor: what the registers of a thread are counted by.
#define BOUNDED_KERNEL(threads, blocks, name, ...) extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
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
DEVICE double double_of(uint64_t x) { return __longlong_as_double((long long)x); }

// d += a b of a warp: a is 16 x 16 (row-major), b is 16 x 8 (column-major), d is 16 x 8 in f32. With group = lane / 4 and pair = lane % 4 a lane
// holds d of rows group and group + 8 at columns 2 pair, 2 pair + 1 (d0 d1, d2 d3); of a the columns 2 pair, 2 pair + 1 of these rows (a0, a1) and
// the same + 8 (a2, a3); of b the rows 2 pair, 2 pair + 1 (b0) and + 8 (b1) at column group. Each register holds two bf16, the first in its low half.
DEVICE void multiply_add_tile(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 tiles of bf16 from shared memory: lane l names the row l % 8 of tile l / 8, 16 bytes of it. A lane gets of each tile the columns
// 2 (l % 4), 2 (l % 4) + 1 of row l / 4; transposed, these rows of column l / 4.
DEVICE void load_tiles(uint32_t& t0, uint32_t& t1, uint32_t& t2, uint32_t& t3, const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(t0), "=r"(t1), "=r"(t2), "=r"(t3) : "r"(uint32_t(__cvta_generic_to_shared(row))));
}
DEVICE void load_tiles_transposed(uint32_t& t0, uint32_t& t1, uint32_t& t2, uint32_t& t3, const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(t0), "=r"(t1), "=r"(t2), "=r"(t3) : "r"(uint32_t(__cvta_generic_to_shared(row))));
}

// Starts a copy of 8 or 16 bytes to shared memory; zeros where there is nothing to copy. Copies belong to the group that `commit_copies` closes, and
// are there for the thread that started them after `wait_for_copies<N>`, which leaves the newest N groups on their way.
template <int BYTES> DEVICE void copy_async(void* shared, const void* global, bool there) {
  uint32_t to = uint32_t(__cvta_generic_to_shared(shared)), size = there ? BYTES : 0;
  if constexpr (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(size) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(global), "r"(size) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// 2^x by the special function unit, within 2 units in the last place; 0 of minus infinity.
DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
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
