// Rows that are gathered, and rows that are added where they came from: in a fixed order, without atomics.
#pragma once

// out[i] = scale * f_i * source[index[i]]; one block a row. The factors f may be absent: then they are 1.
template <class T>
DEVICE void gather_rows(const T* source, const float* factors, const uint32_t* index, T* out, int width, float scale) {
  if (factors) scale *= factors[blockIdx.x];
  const T* from = source + uint64_t(index[blockIdx.x]) * width;
  T* to = out + uint64_t(blockIdx.x) * width;
  for_each_chunk(in_packs(width, source, out), width, [&](auto at) {
    auto values = load(from, at);
    UNROLL for (int k = 0; k < at.SIZE; k++) values.values[k] = from_float<T>(to_float(values.values[k]) * scale);
    store(to, at, values);
  });
}

KERNEL(gather_rows_f32, const float* source, const float* factors, const uint32_t* index, float* out, int width, float scale) {
  gather_rows(source, factors, index, out, width, scale);
}
KERNEL(gather_rows_bf16, const bf16* source, const float* factors, const uint32_t* index, bf16* out, int width, float scale) {
  gather_rows(source, factors, index, out, width, scale);
}

// sums[into[b]] += scale * (f_i rows[i] + ... + f_j rows[j]) over i = order[starts[b]], ..., j = order[starts[b + 1] - 1]; block b. The factors f may
// be absent: then they are 1.
template <class T, class S>
DEVICE void scatter_add_rows(const T* rows, const float* factors, const uint32_t* into, const uint32_t* starts, const uint32_t* order, S* sums, int width,
                             float scale) {
  S* to = sums + uint64_t(into[blockIdx.x]) * width;
  uint32_t first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
  for_each_chunk(in_packs(width, rows, sums), width, [&](auto at) {
    float added[at.SIZE] = {};
    for (uint32_t i = first; i < end; i++) {
      uint32_t row = order[i];
      float factor = factors ? factors[row] : 1.0f;
      auto values = load(rows + uint64_t(row) * width, at);
      UNROLL for (int k = 0; k < at.SIZE; k++) added[k] += factor * to_float(values.values[k]);
    }
    auto sum = load(to, at);
    UNROLL for (int k = 0; k < at.SIZE; k++) sum.values[k] = from_float<S>(to_float(sum.values[k]) + scale * added[k]);
    store(to, at, sum);
  });
}

KERNEL(scatter_add_rows_f32, const float* rows, const float* factors, const uint32_t* into, const uint32_t* starts, const uint32_t* order, float* sums,
       int width, float scale) {
  scatter_add_rows(rows, factors, into, starts, order, sums, width, scale);
}
KERNEL(scatter_add_rows_bf16, const bf16* rows, const float* factors, const uint32_t* into, const uint32_t* starts, const uint32_t* order, bf16* sums,
       int width, float scale) {
  scatter_add_rows(rows, factors, into, starts, order, sums, width, scale);
}
// Into f32 sums: the gradient of a table.
KERNEL(scatter_add_rows_into_floats_f32, const float* rows, const float* factors, const uint32_t* into, const uint32_t* starts, const uint32_t* order,
       float* sums, int width, float scale) {
  scatter_add_rows(rows, factors, into, starts, order, sums, width, scale);
}
KERNEL(scatter_add_rows_into_floats_bf16, const bf16* rows, const float* factors, const uint32_t* into, const uint32_t* starts, const uint32_t* order,
       float* sums, int width, float scale) {
  scatter_add_rows(rows, factors, into, starts, order, sums, width, scale);
}
