// Rotary embedding in place: channels i and i + half of a head turn by the row's angle i. One block a row.
#pragma once

template <class T>
DEVICE void rope(T* rows, const float* cosines, const float* sines, int width, int first, int n_heads, int half, float direction) {
  T* row = rows + uint64_t(blockIdx.x) * width + first;
  const float* cosine_row = cosines + uint64_t(blockIdx.x) * half;
  const float* sine_row = sines + uint64_t(blockIdx.x) * half;
  with_chunk(in_packs(width | first | half, rows, cosines, sines), 0, half, [&](auto at) {
    int chunks_per_head = half / at.SIZE;
    for (int i = threadIdx.x; i < n_heads * chunks_per_head; i += blockDim.x) {
      T* low_row = row + i / chunks_per_head * 2 * half;
      at.first = i % chunks_per_head * at.SIZE;
      auto low = load(low_row, at), high = load(low_row + half, at);
      auto cosine = load(cosine_row, at), sine = load(sine_row, at);
      UNROLL for (int k = 0; k < at.SIZE; k++) {
        float a = to_float(low.values[k]), b = to_float(high.values[k]), c = cosine.values[k], s = direction * sine.values[k];
        low.values[k] = from_float<T>(a * c - b * s);
        high.values[k] = from_float<T>(b * c + a * s);
      }
      store(low_row, at, low);
      store(low_row + half, at, high);
    }
  });
}

KERNEL(rope_f32, float* rows, const float* cosines, const float* sines, int width, int first, int n_heads, int half, float direction) {
  rope(rows, cosines, sines, width, first, n_heads, half, direction);
}
KERNEL(rope_bf16, bf16* rows, const float* cosines, const float* sines, int width, int first, int n_heads, int half, float direction) {
  rope(rows, cosines, sines, width, first, n_heads, half, direction);
}
