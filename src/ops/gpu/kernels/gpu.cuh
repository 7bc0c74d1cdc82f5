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
// For a loop that is seldom run twice, so that it does not take registers as if it were.
#define ROLLED _Pragma("unroll 1")
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

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// e^x: its relative error grows with |x|, 1.2e-6 at 20, so that it is for exponents up to 0, whose powers vanish before that matters.
DEVICE float exp_of(float x) { return power_of_two(LOG2_E * x); }

// 1 - 2 / (e^2x + 1): exact to rounding beside 1, as a cap needs it.
DEVICE float tanh_of(float x) { return 1.0f - 2.0f / (power_of_two(2.0f * LOG2_E * x) + 1.0f); }

// --- Rows, a chunk of values a thread.

// N values that lie side by side, moved 16 bytes at a time; all at once where they are fewer.
template <class T, int N = 16 / int(sizeof(T))> struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  static constexpr int SIZE = N;
  T values[N];
};

// Values that a thread takes of a row at a time, where the row allows it; else it takes one.
constexpr int CHUNK = 8;

// The N values of a row from `first` on; the next ones of a thread are as far behind as all threads' chunks reach.
template <int N> struct Chunk {
  static constexpr int SIZE = N;
  int first, width;
};

template <class T, int N> DEVICE Pack<T, N> load(const T* row, Chunk<N> at) { return *(const Pack<T, N>*)(row + at.first); }
template <class T, int N> DEVICE void store(T* row, Chunk<N> at, const Pack<T, N>& pack) { *(Pack<T, N>*)(row + at.first) = pack; }

// Whether rows can be moved in packs: `widths`, which is all that lies between chunks joined by |, decides. Tensors begin at multiples of 16 bytes, and
// then so do their bands of rows: addresses are looked at lest one that does not is a fault.
template <class... T> DEVICE bool in_packs(int widths, const T*... rows) { return widths % CHUNK == 0 && (uint64_t(rows) | ...) % 16 == 0; }

// Does `work` with the chunk that has so many before it. Its size is part of its type: loads whose size is a variable would wait for one another.
template <int N = CHUNK, class F> DEVICE void with_chunk(bool packed, int n_before, int width, F work) {
  if (packed) work(Chunk<N>{n_before * N, width});
  else work(Chunk<1>{n_before, width});
}

// Does `work` with each of the thread's chunks of the block's row.
template <class F> DEVICE void for_each_chunk(bool packed, int width, F work) {
  with_chunk(packed, threadIdx.x, width, [&](auto at) {
    for (; at.first < width; at.first += blockDim.x * at.SIZE) work(at);
  });
}

// --- Reductions, in an order that is always the same.

template <class V, class F> DEVICE V reduce_warp(V value, F join) {
  for (int mask = 16; mask > 0; mask /= 2) value = join(value, shuffle_xor(value, mask));
  return value;
}

// Over a block of whole warps (1,024 threads at most), known to every thread. `scratch` holds 32 values; joined with `none` a value stays what it is.
template <class V, class F> DEVICE V reduce_block(V value, V none, V* scratch, F join) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = (blockDim.x + 31) / 32;
  value = reduce_warp(value, join);
  if (n_warps == 1) return value;
  sync_block();
  if (lane == 0) scratch[warp] = value;
  sync_block();
  return reduce_warp(lane < n_warps ? scratch[lane] : none, join);
}

template <class V> DEVICE V sum_warp(V value) {
  return reduce_warp(value, [](V a, V b) { return a + b; });
}
template <class V> DEVICE V sum_block(V value, V* scratch) {
  return reduce_block(value, V(0), scratch, [](V a, V b) { return a + b; });
}
DEVICE float max_block(float value, float* scratch) {
  return reduce_block(value, -INFINITY, scratch, [](float a, float b) { return fmaxf(a, b); });
}
