// Sums and fills, 16 bytes or a chunk a thread where lengths and addresses allow it.
#pragma once

template <class T> DEVICE void accumulate(T* sum, const T* other, uint64_t n) {
  constexpr int SIZE = Pack<T>::SIZE;
  uint64_t i = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * SIZE;
  if (i + SIZE <= n && (uint64_t(sum) | uint64_t(other)) % 16 == 0) {
    Pack<T> a = *(const Pack<T>*)(sum + i), b = *(const Pack<T>*)(other + i);
    for (int k = 0; k < SIZE; k++) a.values[k] = from_float<T>(to_float(a.values[k]) + to_float(b.values[k]));
    *(Pack<T>*)(sum + i) = a;
  } else {
    for (uint64_t k = i; k < i + SIZE && k < n; k++) sum[k] = from_float<T>(to_float(sum[k]) + to_float(other[k]));
  }
}

KERNEL(accumulate_f32, float* sum, const float* other, uint64_t n) { accumulate(sum, other, n); }
KERNEL(accumulate_bf16, bf16* sum, const bf16* other, uint64_t n) { accumulate(sum, other, n); }

template <class T> DEVICE void clear(T* values, uint64_t n) {
  constexpr int SIZE = Pack<T>::SIZE;
  uint64_t i = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * SIZE;
  if (i + SIZE <= n && uint64_t(values) % 16 == 0) {
    Pack<T> zeros;
    for (int k = 0; k < SIZE; k++) zeros.values[k] = from_float<T>(0.0f);
    *(Pack<T>*)(values + i) = zeros;
  } else {
    for (uint64_t k = i; k < i + SIZE && k < n; k++) values[k] = from_float<T>(0.0f);
  }
}

KERNEL(clear_f32, float* values, uint64_t n) { clear(values, n); }
KERNEL(clear_bf16, bf16* values, uint64_t n) { clear(values, n); }

// Adds a bias to every row; one block a row.
template <class T> DEVICE void add_bias(T* rows, const T* bias, int width) {
  T* row = rows + uint64_t(blockIdx.x) * width;
  for_each_chunk(in_packs(width, rows, bias), width, [&](auto at) {
    auto sum = load(row, at), other = load(bias, at);
    UNROLL for (int k = 0; k < at.SIZE; k++) sum.values[k] = from_float<T>(to_float(sum.values[k]) + to_float(other.values[k]));
    store(row, at, sum);
  });
}

KERNEL(add_bias_f32, float* rows, const float* bias, int width) { add_bias(rows, bias, width); }
KERNEL(add_bias_bf16, bf16* rows, const bf16* bias, int width) { add_bias(rows, bias, width); }

// Sums of columns over a block's rows, into that block's row of `partial`: x over chunks of columns, y over groups of rows.
template <class T> DEVICE void sum_columns(const T* rows, float* partial, int n_rows, int width, int rows_per_block) {
  int first = blockIdx.y * rows_per_block, end = min(first + rows_per_block, n_rows);
  with_chunk(in_packs(width, rows, partial), blockIdx.x * blockDim.x + threadIdx.x, width, [&](auto at) {
    ROLLED for (; at.first < width; at.first += gridDim.x * blockDim.x * at.SIZE) {
      Pack<float, at.SIZE> sums = {};
      for (int row = first; row < end; row++) {
        auto values = load(rows + uint64_t(row) * width, at);
        UNROLL for (int k = 0; k < at.SIZE; k++) sums.values[k] += to_float(values.values[k]);
      }
      store(partial + uint64_t(blockIdx.y) * width, at, sums);
    }
  });
}

KERNEL(sum_columns_f32, const float* rows, float* partial, int n_rows, int width, int rows_per_block) {
  sum_columns(rows, partial, n_rows, width, rows_per_block);
}
KERNEL(sum_columns_bf16, const bf16* rows, float* partial, int n_rows, int width, int rows_per_block) {
  sum_columns(rows, partial, n_rows, width, rows_per_block);
}

// Adds the rows of `partial` to `sum`: a block has 32 columns, each of its warps every n-th row, and then the warps' sums are added in their order.
// One thread a column would wait for one row after the other.
KERNEL(add_partial_sums_f32, float* sum, const float* partial, int n_partial, int width) {
  SHARED(float, sums_of_warps, 1024);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32, column = blockIdx.x * 32 + lane;
  float total = 0;
  if (column < width)
    for (int row = warp; row < n_partial; row += n_warps) total += partial[uint64_t(row) * width + column];
  sums_of_warps[threadIdx.x] = total;
  sync_block();
  if (warp > 0 || column >= width) return;
  for (int other = 1; other < n_warps; other++) total += sums_of_warps[other * 32 + lane];
  sum[column] += total;
}
