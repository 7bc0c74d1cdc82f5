// RMS norm: y = x r g with r = 1 / sqrt(mean(x^2) + eps) and g the weight, or 1 + the weight. One block a row.
//
// A row is needed twice, for its mean and for what that gives. What a thread has first of it stays in registers in between: all of it up to
// 8 values for each of 1,024 threads. What is behind that is read again.
#pragma once

template <class T> DEVICE float gain_of(T weight, int one_plus) { return to_float(weight) + (one_plus ? 1.0f : 0.0f); }

// Where `x` is given it is added to `row` first: the residual connection in front of the norm.
template <class T> DEVICE void rms_norm_forward(T* sums, const T* x, const T* weight, T* y, float* r, int width, float eps, int one_plus) {
  SHARED(float, scratch, 32);
  uint64_t start = uint64_t(blockIdx.x) * width;
  with_chunk(in_packs(width, sums, x, weight, y), threadIdx.x, width, [&](auto own) {
    Pack<T, own.SIZE> kept = {};
    float squares = 0;
    ROLLED for (auto at = own; at.first < width; at.first += blockDim.x * own.SIZE) {
      Pack<T, own.SIZE> sum = load(sums + start, at), added;
      if (x) {
        added = load(x + start, at);
        UNROLL for (int k = 0; k < own.SIZE; k++) sum.values[k] = from_float<T>(to_float(sum.values[k]) + to_float(added.values[k]));
        store(sums + start, at, sum);
      }
      UNROLL for (int k = 0; k < own.SIZE; k++) squares += to_float(sum.values[k]) * to_float(sum.values[k]);
      if (at.first == own.first) kept = sum;
    }
    float scale = 1.0f / sqrtf(sum_block(squares, scratch) / width + eps);
    if (threadIdx.x == 0) r[blockIdx.x] = scale;
    ROLLED for (auto at = own; at.first < width; at.first += blockDim.x * own.SIZE) {
      Pack<T, own.SIZE> values = kept, gain = load(weight, at);
      if (at.first != own.first) values = load(sums + start, at);
      UNROLL for (int k = 0; k < own.SIZE; k++)
        values.values[k] = from_float<T>(to_float(values.values[k]) * scale * gain_of(gain.values[k], one_plus));
      store(y + start, at, values);
    }
  });
}

KERNEL(rms_norm_forward_f32, float* sums, const float* x, const float* weight, float* y, float* r, int width, float eps, int one_plus) {
  rms_norm_forward(sums, x, weight, y, r, width, eps, one_plus);
}
KERNEL(rms_norm_forward_bf16, bf16* sums, const bf16* x, const bf16* weight, bf16* y, float* r, int width, float eps, int one_plus) {
  rms_norm_forward(sums, x, weight, y, r, width, eps, one_plus);
}

template <class T> DEVICE void rms_norm_recompute(const T* x, const T* weight, const float* r, T* y, int width, int one_plus) {
  uint64_t start = uint64_t(blockIdx.x) * width;
  float scale = r[blockIdx.x];
  for_each_chunk(in_packs(width, x, weight, y), width, [&](auto at) {
    auto values = load(x + start, at), gain = load(weight, at);
    UNROLL for (int k = 0; k < at.SIZE; k++)
      values.values[k] = from_float<T>(to_float(values.values[k]) * scale * gain_of(gain.values[k], one_plus));
    store(y + start, at, values);
  });
}

KERNEL(rms_norm_recompute_f32, const float* x, const float* weight, const float* r, float* y, int width, int one_plus) {
  rms_norm_recompute(x, weight, r, y, width, one_plus);
}
KERNEL(rms_norm_recompute_bf16, const bf16* x, const bf16* weight, const float* r, bf16* y, int width, int one_plus) {
  rms_norm_recompute(x, weight, r, y, width, one_plus);
}

// What the backward reads of a row.
template <class T, int N> struct NormRow { Pack<T, N> x, dy, gain; };

template <class T, int N> DEVICE NormRow<T, N> load_norm_row(const T* x, const T* dy, const T* weight, Chunk<N> at) {
  return {load(x, at), load(dy, at), load(weight, at)};
}

// The part of a row's sum of g dy x r that lies here; adds dy x r to `gain_gradient`, where that is given.
template <class T, int N>
DEVICE float norm_products(const NormRow<T, N>& row, float scale, int one_plus, float* gain_gradient, Chunk<N> at) {
  float sum = 0;
  Pack<float, N> gradient;
  UNROLL for (int k = 0; k < N; k++) {
    float product = to_float(row.dy.values[k]) * to_float(row.x.values[k]) * scale;
    gradient.values[k] = product;
    sum += gain_of(row.gain.values[k], one_plus) * product;
  }
  if (gain_gradient) {
    auto old = load(gain_gradient, at);
    UNROLL for (int k = 0; k < N; k++) gradient.values[k] += old.values[k];
    store(gain_gradient, at, gradient);
  }
  return sum;
}

// Value k of dx = r (g dy - x r mean(g dy x r)).
template <class T, int N> DEVICE float norm_gradient(const NormRow<T, N>& row, int k, float scale, float mean, int one_plus) {
  return scale * (gain_of(row.gain.values[k], one_plus) * to_float(row.dy.values[k]) - to_float(row.x.values[k]) * scale * mean);
}

// dx (+ past), a block for some rows; sums of dy x r over its rows, one a column, go to its row of `partial`. They are formed in dynamic shared
// memory, of which a thread has its own columns.
template <class T>
DEVICE void rms_norm_backward(const T* x, const T* weight, const float* r, const T* dy, const T* past, T* dx, float* partial, int n_rows, int width,
                              int rows_per_block, int one_plus) {
  SHARED(float, scratch, 32);
  DYNAMIC_SHARED(memory);
  float* gain_gradient = partial ? (float*)memory : nullptr;
  int first = blockIdx.x * rows_per_block, end = min(first + rows_per_block, n_rows);
  with_chunk(in_packs(width, x, weight, dy, past, dx, partial), threadIdx.x, width, [&](auto own) {
    const int step = blockDim.x * own.SIZE;
    if (partial)
      ROLLED for (auto at = own; at.first < width; at.first += step) store(gain_gradient, at, Pack<float, own.SIZE>{});
    for (int row = first; row < end; row++) {
      uint64_t start = uint64_t(row) * width;
      float scale = r[row], product = 0;
      NormRow<T, own.SIZE> kept = {};
      ROLLED for (auto at = own; at.first < width; at.first += step) {
        auto values = load_norm_row(x + start, dy + start, weight, at);
        product += norm_products(values, scale, one_plus, gain_gradient, at);
        if (at.first == own.first) kept = values;
      }
      float mean = sum_block(product, scratch) / width;
      ROLLED for (auto at = own; at.first < width; at.first += step) {
        auto values = kept;
        Pack<T, own.SIZE> beside = {};
        if (past) beside = load(past + start, at);
        if (at.first != own.first) values = load_norm_row(x + start, dy + start, weight, at);
        UNROLL for (int k = 0; k < own.SIZE; k++)
          beside.values[k] = from_float<T>(norm_gradient(values, k, scale, mean, one_plus) + to_float(beside.values[k]));
        store(dx + start, at, beside);
      }
    }
    if (partial)
      ROLLED for (auto at = own; at.first < width; at.first += step) store(partial + uint64_t(blockIdx.x) * width, at, load(gain_gradient, at));
  });
}

KERNEL(rms_norm_backward_f32, const float* x, const float* weight, const float* r, const float* dy, const float* past, float* dx, float* partial,
       int n_rows, int width, int rows_per_block, int one_plus) {
  rms_norm_backward(x, weight, r, dy, past, dx, partial, n_rows, width, rows_per_block, one_plus);
}
KERNEL(rms_norm_backward_bf16, const bf16* x, const bf16* weight, const float* r, const bf16* dy, const bf16* past, bf16* dx, float* partial,
       int n_rows, int width, int rows_per_block, int one_plus) {
  rms_norm_backward(x, weight, r, dy, past, dx, partial, n_rows, width, rows_per_block, one_plus);
}

// Values that a lane takes of a head at a time: a warp has all of one of 128.
constexpr int HEAD_CHUNK = 4;

// Some heads of every row, in place: a warp norms one head of one row. `r` is [rows, heads].
template <class T>
DEVICE void rms_norm_heads_forward(T* rows, const T* weight, float* r, int n_units, int row_width, int first, int n_heads, int head_dim, float eps,
                                   int one_plus) {
  int unit = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (unit >= n_units) return;
  T* head = rows + uint64_t(unit / n_heads) * row_width + first + unit % n_heads * head_dim;
  with_chunk<HEAD_CHUNK>(in_packs(row_width | first | head_dim, rows, weight), lane, head_dim, [&](auto own) {
    Pack<T, own.SIZE> kept = {};
    float squares = 0;
    ROLLED for (auto at = own; at.first < head_dim; at.first += 32 * at.SIZE) {
      auto values = load(head, at);
      UNROLL for (int k = 0; k < own.SIZE; k++) squares += to_float(values.values[k]) * to_float(values.values[k]);
      if (at.first == own.first) kept = values;
    }
    float scale = 1.0f / sqrtf(sum_warp(squares) / head_dim + eps);
    if (lane == 0) r[unit] = scale;
    ROLLED for (auto at = own; at.first < head_dim; at.first += 32 * at.SIZE) {
      Pack<T, own.SIZE> values = kept, gain = load(weight, at);
      if (at.first != own.first) values = load(head, at);
      UNROLL for (int k = 0; k < own.SIZE; k++)
        values.values[k] = from_float<T>(to_float(values.values[k]) * scale * gain_of(gain.values[k], one_plus));
      store(head, at, values);
    }
  });
}

KERNEL(rms_norm_heads_forward_f32, float* rows, const float* weight, float* r, int n_units, int row_width, int first, int n_heads, int head_dim,
       float eps, int one_plus) {
  rms_norm_heads_forward(rows, weight, r, n_units, row_width, first, n_heads, head_dim, eps, one_plus);
}
KERNEL(rms_norm_heads_forward_bf16, bf16* rows, const bf16* weight, float* r, int n_units, int row_width, int first, int n_heads, int head_dim,
       float eps, int one_plus) {
  rms_norm_heads_forward(rows, weight, r, n_units, row_width, first, n_heads, head_dim, eps, one_plus);
}

// The gradients of these heads' inputs, in place of those of their normed values. A block takes some units (row and head), its warps in turns; what
// they add to the weight's gradient goes to the block's row of `partial`. Dynamic shared memory: a row of head_dim floats for each warp.
template <class T>
DEVICE void rms_norm_heads_backward(const T* x, const T* weight, const float* r, T* d, float* partial, int n_units, int units_per_block,
                                    int row_width, int first, int n_heads, int head_dim, int one_plus) {
  DYNAMIC_SHARED(memory);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32, end = min(int(blockIdx.x + 1) * units_per_block, n_units);
  float* gain_gradient = (float*)memory + warp * head_dim;
  for (int i = lane; i < head_dim; i += 32) gain_gradient[i] = 0;
  sync_warp();
  with_chunk<HEAD_CHUNK>(in_packs(row_width | first | head_dim, x, weight, d), lane, head_dim, [&](auto own) {
    for (int unit = blockIdx.x * units_per_block + warp; unit < end; unit += n_warps) {
      uint64_t start = uint64_t(unit / n_heads) * row_width + first + unit % n_heads * head_dim;
      float scale = r[unit], product = 0;
      NormRow<T, own.SIZE> kept = {};
      ROLLED for (auto at = own; at.first < head_dim; at.first += 32 * at.SIZE) {
        auto values = load_norm_row<T>(x + start, d + start, weight, at);
        product += norm_products(values, scale, one_plus, gain_gradient, at);
        if (at.first == own.first) kept = values;
      }
      float mean = sum_warp(product) / head_dim;
      ROLLED for (auto at = own; at.first < head_dim; at.first += 32 * at.SIZE) {
        auto values = at.first == own.first ? kept : load_norm_row<T>(x + start, d + start, weight, at);
        Pack<T, own.SIZE> gradient;
        UNROLL for (int k = 0; k < own.SIZE; k++) gradient.values[k] = from_float<T>(norm_gradient(values, k, scale, mean, one_plus));
        store(d + start, at, gradient);
      }
    }
  });
  sync_block();
  if (partial)
    for (int i = threadIdx.x; i < head_dim; i += blockDim.x) {
      float sum = 0;
      for (int k = 0; k < n_warps; k++) sum += ((float*)memory)[k * head_dim + i];
      partial[uint64_t(blockIdx.x) * head_dim + i] = sum;
    }
}

KERNEL(rms_norm_heads_backward_f32, const float* x, const float* weight, const float* r, float* d, float* partial, int n_units, int units_per_block,
       int row_width, int first, int n_heads, int head_dim, int one_plus) {
  rms_norm_heads_backward(x, weight, r, d, partial, n_units, units_per_block, row_width, first, n_heads, head_dim, one_plus);
}
KERNEL(rms_norm_heads_backward_bf16, const bf16* x, const bf16* weight, const float* r, bf16* d, float* partial, int n_units, int units_per_block,
       int row_width, int first, int n_heads, int head_dim, int one_plus) {
  rms_norm_heads_backward(x, weight, r, d, partial, n_units, units_per_block, row_width, first, n_heads, head_dim, one_plus);
}
