// Sums and fills, a pack of 16 bytes a thread where the length allows it.
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
  for (uint64_t k = i; k < i + SIZE && k < n; k++) values[k] = from_float<T>(0.0f);
}

KERNEL(clear_f32, float* values, uint64_t n) { clear(values, n); }
KERNEL(clear_bf16, bf16* values, uint64_t n) { clear(values, n); }

// Adds a bias to every row; one block a row.
template <class T> DEVICE void add_bias(T* rows, const T* bias, int width) {
  T* row = rows + uint64_t(blockIdx.x) * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) row[i] = from_float<T>(to_float(row[i]) + to_float(bias[i]));
}

KERNEL(add_bias_f32, float* rows, const float* bias, int width) { add_bias(rows, bias, width); }
KERNEL(add_bias_bf16, bf16* rows, const bf16* bias, int width) { add_bias(rows, bias, width); }

// Sums of columns over a block's rows, into that block's row of `partial`: x over columns, y over groups of rows.
template <class T> DEVICE void sum_columns(const T* rows, float* partial, int n_rows, int width, int rows_per_block) {
  int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= width) return;
  int first = blockIdx.y * rows_per_block, end = min(first + rows_per_block, n_rows);
  float sum = 0;
  for (int row = first; row < end; row++) sum += to_float(rows[uint64_t(row) * width + column]);
  partial[uint64_t(blockIdx.y) * width + column] = sum;
}

KERNEL(sum_columns_f32, const float* rows, float* partial, int n_rows, int width, int rows_per_block) {
  sum_columns(rows, partial, n_rows, width, rows_per_block);
}
KERNEL(sum_columns_bf16, const bf16* rows, float* partial, int n_rows, int width, int rows_per_block) {
  sum_columns(rows, partial, n_rows, width, rows_per_block);
}

// Adds the rows of `partial`, in order, to `sum`.
KERNEL(add_partial_sums_f32, float* sum, const float* partial, int n_partial, int width) {
  int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= width) return;
  float total = 0;
  for (int row = 0; row < n_partial; row++) total += partial[uint64_t(row) * width + column];
  sum[column] += total;
}
