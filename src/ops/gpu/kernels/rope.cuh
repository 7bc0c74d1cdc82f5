// Rotary embedding in place: channels i and i + half of a head turn by the row's angle i. One block a row.
#pragma once

template <class T>
DEVICE void rope(T* rows, const float* cosines, const float* sines, int width, int first, int n_heads, int half, float direction) {
  T* row = rows + uint64_t(blockIdx.x) * width + first;
  const float* cosine = cosines + uint64_t(blockIdx.x) * half;
  const float* sine = sines + uint64_t(blockIdx.x) * half;
  for (int k = threadIdx.x; k < n_heads * half; k += blockDim.x) {
    int head = k / half, i = k % half;
    T* low = row + head * 2 * half + i;
    float a = to_float(low[0]), b = to_float(low[half]), c = cosine[i], s = direction * sine[i];
    low[0] = from_float<T>(a * c - b * s);
    low[half] = from_float<T>(b * c + a * s);
  }
}

KERNEL(rope_f32, float* rows, const float* cosines, const float* sines, int width, int first, int n_heads, int half, float direction) {
  rope(rows, cosines, sines, width, first, n_heads, half, direction);
}
KERNEL(rope_bf16, bf16* rows, const float* cosines, const float* sines, int width, int first, int n_heads, int half, float direction) {
  rope(rows, cosines, sines, width, first, n_heads, half, direction);
}
