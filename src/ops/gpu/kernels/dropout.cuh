// Dropout whose mask is a hash of row, place and channel: the same mask as on the CPU, bit for bit. One block a row.
#pragma once

DEVICE uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

DEVICE uint64_t mix_in(uint64_t key, uint64_t value) { return mix((key * 0x9e3779b97f4a7c15ull) ^ mix(value + 0x9e3779b97f4a7c15ull)); }

template <class T>
DEVICE void dropout(const T* x, T* out, const uint64_t* row_keys, uint64_t place, int width, uint64_t threshold, float factor) {
  uint64_t key = mix_in(place, row_keys[blockIdx.x]), start = uint64_t(blockIdx.x) * width;
  for_each_chunk(in_packs(width, x, out), width, [&](auto at) {
    auto values = load(x + start, at);
    uint64_t hash = 0;
    UNROLL for (int k = 0; k < at.SIZE; k++) {
      if (k % 2 == 0) hash = mix(key + uint64_t((at.first + k) / 2) * 0x9e3779b97f4a7c15ull);  // For two values.
      bool is_second = (at.SIZE == 1 ? at.first : k) % 2 == 1;
      uint32_t bits = uint32_t(is_second ? hash >> 32 : hash);
      values.values[k] = from_float<T>(bits < threshold ? 0.0f : to_float(values.values[k]) * factor);
    }
    store(out + start, at, values);
  });
}

KERNEL(dropout_f32, const float* x, float* out, const uint64_t* row_keys, uint64_t place, int width, uint64_t threshold, float factor) {
  dropout(x, out, row_keys, place, width, threshold, factor);
}
KERNEL(dropout_bf16, const bf16* x, bf16* out, const uint64_t* row_keys, uint64_t place, int width, uint64_t threshold, float factor) {
  dropout(x, out, row_keys, place, width, threshold, factor);
}
