// RMS norm: y = x r g with r = 1 / sqrt(mean(x^2) + eps) and g the weight, or 1 + the weight. One block a row.
#pragma once

template <class T> DEVICE float gain_of(const T* weight, int i, int one_plus) { return to_float(weight[i]) + (one_plus ? 1.0f : 0.0f); }

// Where `x` is given it is added to `row` first: the residual connection in front of the norm.
template <class T> DEVICE void rms_norm_forward(T* sums, const T* x, const T* weight, T* y, float* r, int width, float eps, int one_plus) {
  SHARED(float, scratch, 32);
  uint64_t start = uint64_t(blockIdx.x) * width;
  float squares = 0;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    if (x) sums[start + i] = from_float<T>(to_float(sums[start + i]) + to_float(x[start + i]));
    float value = to_float(sums[start + i]);
    squares += value * value;
  }
  float scale = 1.0f / sqrtf(sum_block(squares, scratch) / width + eps);
  if (threadIdx.x == 0) r[blockIdx.x] = scale;
  for (int i = threadIdx.x; i < width; i += blockDim.x) y[start + i] = from_float<T>(to_float(sums[start + i]) * scale * gain_of(weight, i, one_plus));
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
  for (int i = threadIdx.x; i < width; i += blockDim.x) y[start + i] = from_float<T>(to_float(x[start + i]) * scale * gain_of(weight, i, one_plus));
}

KERNEL(rms_norm_recompute_f32, const float* x, const float* weight, const float* r, float* y, int width, int one_plus) {
  rms_norm_recompute(x, weight, r, y, width, one_plus);
}
KERNEL(rms_norm_recompute_bf16, const bf16* x, const bf16* weight, const float* r, bf16* y, int width, int one_plus) {
  rms_norm_recompute(x, weight, r, y, width, one_plus);
}

// dx = r (g dy - x r mean(g dy x r)) (+ past), a block for some rows; sums of dy x r over its rows, one a column, go to its row of `partial`.
template <class T>
DEVICE void rms_norm_backward(const T* x, const T* weight, const float* r, const T* dy, const T* past, T* dx, float* partial, int n_rows, int width,
                              int rows_per_block, int one_plus) {
  SHARED(float, scratch, 32);
  DYNAMIC_SHARED(memory);
  float* gain_gradient = (float*)memory;  // a thread reads and writes its own columns only
  if (partial)
    for (int i = threadIdx.x; i < width; i += blockDim.x) gain_gradient[i] = 0;
  int first = blockIdx.x * rows_per_block, end = min(first + rows_per_block, n_rows);
  for (int row = first; row < end; row++) {
    uint64_t start = uint64_t(row) * width;
    float scale = r[row], product = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
      float normed = to_float(x[start + i]) * scale, slope = to_float(dy[start + i]);
      product += gain_of(weight, i, one_plus) * slope * normed;
      if (partial) gain_gradient[i] += slope * normed;
    }
    float mean = sum_block(product, scratch) / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
      float normed = to_float(x[start + i]) * scale;
      float value = scale * (gain_of(weight, i, one_plus) * to_float(dy[start + i]) - normed * mean);
      if (past) value += to_float(past[start + i]);
      dx[start + i] = from_float<T>(value);
    }
  }
  if (partial)
    for (int i = threadIdx.x; i < width; i += blockDim.x) partial[uint64_t(blockIdx.x) * width + i] = gain_gradient[i];
}

KERNEL(rms_norm_backward_f32, const float* x, const float* weight, const float* r, const float* dy, const float* past, float* dx, float* partial,
       int n_rows, int width, int rows_per_block, int one_plus) {
  rms_norm_backward(x, weight, r, dy, past, dx, partial, n_rows, width, rows_per_block, one_plus);
}
KERNEL(rms_norm_backward_bf16, const bf16* x, const bf16* weight, const float* r, const bf16* dy, const bf16* past, bf16* dx, float* partial,
       int n_rows, int width, int rows_per_block, int one_plus) {
  rms_norm_backward(x, weight, r, dy, past, dx, partial, n_rows, width, rows_per_block, one_plus);
}

// Some heads of every row, in place: a warp norms one head of one row. `r` is [rows, heads].
template <class T>
DEVICE void rms_norm_heads_forward(T* rows, const T* weight, float* r, int n_units, int row_width, int first, int n_heads, int head_dim, float eps,
                                   int one_plus) {
  int unit = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (unit >= n_units) return;
  T* head = rows + uint64_t(unit / n_heads) * row_width + first + unit % n_heads * head_dim;
  float squares = 0;
  for (int i = lane; i < head_dim; i += 32) squares += to_float(head[i]) * to_float(head[i]);
  float scale = 1.0f / sqrtf(sum_warp(squares) / head_dim + eps);
  if (lane == 0) r[unit] = scale;
  for (int i = lane; i < head_dim; i += 32) head[i] = from_float<T>(to_float(head[i]) * scale * gain_of(weight, i, one_plus));
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
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
  float* gain_gradient = (float*)memory + warp * head_dim;
  for (int i = lane; i < head_dim; i += 32) gain_gradient[i] = 0;
  int end = min(int(blockIdx.x + 1) * units_per_block, n_units);
  for (int unit = blockIdx.x * units_per_block + warp; unit < end; unit += n_warps) {
    uint64_t start = uint64_t(unit / n_heads) * row_width + first + unit % n_heads * head_dim;
    float scale = r[unit], product = 0;
    for (int i = lane; i < head_dim; i += 32) {
      float normed = to_float(x[start + i]) * scale, slope = to_float(d[start + i]);
      product += gain_of(weight, i, one_plus) * slope * normed;
      gain_gradient[i] += slope * normed;
    }
    float mean = sum_warp(product) / head_dim;
    for (int i = lane; i < head_dim; i += 32) {
      float normed = to_float(x[start + i]) * scale;
      d[start + i] = from_float<T>(scale * (gain_of(weight, i, one_plus) * to_float(d[start + i]) - normed * mean));
    }
  }
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
