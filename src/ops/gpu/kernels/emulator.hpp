// A GPU of one thread, for tests: the threads of a block are fibers that run until they meet at a barrier, from the first on or
// from the last on, so that a missing barrier shows. A barrier that not all threads reach is an error. Blocks run one after the other.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#define KERNEL(name, ...)                                        \
  static void name(__VA_ARGS__);                                 \
  static emulator::Registered registered_##name(#name, name);    \
  static void name(__VA_ARGS__)
#define BOUNDED_KERNEL(threads, blocks, ...) KERNEL(__VA_ARGS__)
#define DEVICE static inline __attribute__((unused))
#define UNROLL
#define ROLLED
#define SHARED(type, name, count) static thread_local __attribute__((unused)) type name[count]
#define DYNAMIC_SHARED(name) unsigned char* name = emulator::block().shared.data()
#define __launch_bounds__(...)
#define __restrict__
#define __host__
#define __device__

struct uint3 { unsigned x, y, z; };

namespace emulator {
struct Barrier { int arrived = 0, generation = 0; };

// Copies are made as late as a kernel allows: what does not wait for them shows.
struct Copy { void* to; const void* from; size_t n_bytes; bool there; int group; };

struct Fiber {
  ucontext_t context;
  std::vector<Copy> copies;
  int n_groups = 0;
  std::vector<unsigned char> stack;
  bool done = true;
  const Barrier* barrier = nullptr;  // what it waits at, and of which generation
  int generation = 0;
};

struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<unsigned char> shared;
  std::vector<Barrier> warps;
  std::vector<std::vector<unsigned char>> slots;  // what lanes show each other
  Barrier all;
  int n_threads = 0, n_done = 0, current = 0;
  void (*run)(void*) = nullptr;
  void* call = nullptr;
  uint3 block{0, 0, 0}, block_size{1, 1, 1}, grid_size{1, 1, 1};
  bool backwards = false;  // whether the last thread goes first
};

inline Block& block() {
  static thread_local Block block;
  return block;
}

// The last to arrive does `together` before all go on.
template <class F> void wait_at(Barrier& barrier, int n_threads, F together) {
  Block& b = block();
  if (++barrier.arrived == n_threads) {
    together();
    barrier.arrived = 0;
    barrier.generation++;
    return;
  }
  Fiber& fiber = b.fibers[b.current];
  fiber.barrier = &barrier;
  fiber.generation = barrier.generation;
  int current = b.current;
  swapcontext(&fiber.context, &b.scheduler);
  b.current = current;
}

inline void wait_at(Barrier& barrier, int n_threads) { wait_at(barrier, n_threads, [] {}); }

inline void start() {
  Block& b = block();
  b.run(b.call);
  b.fibers[b.current].done = true;
  b.n_done++;
}

inline void run_block() {
  Block& b = block();
  b.n_done = 0;
  b.all = Barrier();
  for (Barrier& warp : b.warps) warp = Barrier();
  for (int i = 0; i < b.n_threads; i++) {
    Fiber& fiber = b.fibers[i];
    if (fiber.stack.empty()) fiber.stack.resize(128 << 10);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &b.scheduler;
    makecontext(&fiber.context, start, 0);
    fiber.done = false;
    fiber.barrier = nullptr;
    fiber.copies.clear();
    fiber.n_groups = 0;
  }
  while (b.n_done < b.n_threads) {
    bool moved = false;
    for (int k = 0; k < b.n_threads; k++) {
      int i = b.backwards ? b.n_threads - 1 - k : k;
      Fiber& fiber = b.fibers[i];
      if (fiber.done || (fiber.barrier && fiber.barrier->generation == fiber.generation)) continue;
      fiber.barrier = nullptr;
      b.current = i;
      swapcontext(&b.scheduler, &fiber.context);
      moved = true;
    }
    if (!moved) {
      fprintf(stderr, "a barrier was not reached by all threads of block (%u, %u, %u)\n", b.block.x, b.block.y, b.block.z);
      abort();
    }
  }
}

struct Kernels {
  std::map<std::string, std::pair<void (*)(void*, void**), void*>> by_name;
};

inline Kernels& kernels() {
  static Kernels kernels;
  return kernels;
}

struct Registered {
  template <class... A> Registered(const char* name, void (*kernel)(A...)) {
    kernels().by_name[name] = {[](void* kernel, void** arguments) { call<A...>((void (*)(A...))kernel, arguments, std::index_sequence_for<A...>()); },
                               (void*)kernel};
  }
  template <class... A, size_t... I> static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)arguments[I]...);
  }
};

struct Call {
  std::pair<void (*)(void*, void**), void*> kernel;
  void** arguments;
};

// 0, or 1 where there is no such kernel.
inline int launch(const char* name, const unsigned grid[3], unsigned threads, unsigned shared, void** arguments) {
  auto found = kernels().by_name.find(name);
  if (found == kernels().by_name.end()) return 1;
  Block& b = block();
  Call call{found->second, arguments};
  b.n_threads = int(threads);
  b.block_size = uint3{threads, 1, 1};
  b.grid_size = uint3{grid[0], grid[1], grid[2]};
  b.call = &call;
  b.run = [](void* call) { ((Call*)call)->kernel.first(((Call*)call)->kernel.second, ((Call*)call)->arguments); };
  if (b.fibers.size() < threads) b.fibers.resize(threads);
  b.warps.assign((threads + 31) / 32, Barrier());
  b.slots.assign(threads, std::vector<unsigned char>(64));
  // What is not written before it is read is not a number.
  b.shared.assign(shared + 16, 0xff);
  for (unsigned z = 0; z < grid[2]; z++)
    for (unsigned y = 0; y < grid[1]; y++)
      for (unsigned x = 0; x < grid[0]; x++) {
        b.block = uint3{x, y, z};
        run_block();
      }
  return 0;
}

inline int lane() { return block().current % 32; }
inline int warp_size() {
  Block& b = block();
  int first = b.current / 32 * 32;
  return b.n_threads - first < 32 ? b.n_threads - first : 32;
}
inline Barrier& warp_barrier() { return block().warps[block().current / 32]; }
}  // namespace emulator

#define threadIdx (uint3{unsigned(emulator::block().current), 0, 0})
#define blockIdx (emulator::block().block)
#define blockDim (emulator::block().block_size)
#define gridDim (emulator::block().grid_size)

struct bf16 { uint16_t bits; };

DEVICE uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
DEVICE float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
DEVICE double double_of(uint64_t bits) { double x; memcpy(&x, &bits, 8); return x; }
DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return float_of(uint32_t(x.bits) << 16); }
template <class T> T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline bf16 from_float<bf16>(float x) {
  if (x != x) return bf16{0x7fff};
  uint32_t bits = bits_of(x);
  return bf16{uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

DEVICE void sync_block() { emulator::wait_at(emulator::block().all, emulator::block().n_threads); }
DEVICE void sync_warp() { emulator::wait_at(emulator::warp_barrier(), emulator::warp_size()); }

namespace emulator {
template <class T> T& slot(int lane) { return *(T*)block().slots[block().current / 32 * 32 + lane].data(); }
}

template <class T> T shuffle_xor(T value, int mask) {
  emulator::slot<T>(emulator::lane()) = value;
  sync_warp();
  T other = emulator::slot<T>(emulator::lane() ^ mask);
  sync_warp();
  return other;
}

DEVICE float half_of(uint32_t pair, int which) { return to_float(bf16{uint16_t(pair >> (16 * which))}); }

struct TileFactors { const uint32_t *a, *b; float* d; };

DEVICE void multiply_add_tile(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::slot<TileFactors>(emulator::lane()) = {a, b, d};
  emulator::wait_at(emulator::warp_barrier(), emulator::warp_size(), [] {
    float left[16][16], right[8][16];  // Row by row, and column by column.
    for (int lane = 0; lane < 32; lane++) {
      const TileFactors& own = emulator::slot<TileFactors>(lane);
      for (int i = 0; i < 8; i++) left[lane / 4 + i / 2 % 2 * 8][lane % 4 * 2 + i % 2 + i / 4 * 8] = half_of(own.a[i / 2], i % 2);
      for (int i = 0; i < 4; i++) right[lane / 4][lane % 4 * 2 + i % 2 + i / 2 * 8] = half_of(own.b[i / 2], i % 2);
    }
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        const float *row = left[lane / 4 + i / 2 * 8], *column = right[lane % 4 * 2 + i % 2];
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += row[k] * column[k];
        emulator::slot<TileFactors>(lane).d[i] += sum;
      }
  });
}

struct TileRow { const bf16* values; uint32_t* tiles[4]; };

DEVICE void load_tiles(uint32_t& t0, uint32_t& t1, uint32_t& t2, uint32_t& t3, const bf16* row) {
  emulator::slot<TileRow>(emulator::lane()) = {row, {&t0, &t1, &t2, &t3}};
  emulator::wait_at(emulator::warp_barrier(), emulator::warp_size(), [] {
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++)
        memcpy(emulator::slot<TileRow>(lane).tiles[i], emulator::slot<TileRow>(8 * i + lane / 4).values + lane % 4 * 2, 4);
  });
}

DEVICE void load_tiles_transposed(uint32_t& t0, uint32_t& t1, uint32_t& t2, uint32_t& t3, const bf16* row) {
  emulator::slot<TileRow>(emulator::lane()) = {row, {&t0, &t1, &t2, &t3}};
  emulator::wait_at(emulator::warp_barrier(), emulator::warp_size(), [] {
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        const TileRow* rows[2] = {&emulator::slot<TileRow>(8 * i + lane % 4 * 2), &emulator::slot<TileRow>(8 * i + lane % 4 * 2 + 1)};
        *emulator::slot<TileRow>(lane).tiles[i] = rows[0]->values[lane / 4].bits | uint32_t(rows[1]->values[lane / 4].bits) << 16;
      }
  });
}

namespace emulator {
inline Fiber& fiber() { return block().fibers[block().current]; }
}

template <int BYTES> DEVICE void copy_async(void* shared, const void* global, bool there) {
  emulator::Fiber& fiber = emulator::fiber();
  fiber.copies.push_back({shared, global, BYTES, there, fiber.n_groups});
}
DEVICE void commit_copies() { emulator::fiber().n_groups++; }
template <int N> DEVICE void wait_for_copies() {
  emulator::Fiber& fiber = emulator::fiber();
  size_t kept = 0;
  for (const emulator::Copy& copy : fiber.copies) {
    if (copy.group >= fiber.n_groups - N) fiber.copies[kept++] = copy;
    else if (copy.there) memcpy(copy.to, copy.from, copy.n_bytes);
    else memset(copy.to, 0, copy.n_bytes);
  }
  fiber.copies.resize(kept);
}

DEVICE float power_of_two(float x) { return exp2f(x); }
