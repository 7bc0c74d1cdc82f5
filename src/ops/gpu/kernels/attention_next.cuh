// Attention of the next token of each of several sequences, over the keys and values kept of it.
#pragma once

// Query heads that a block takes of those that share a key head.
constexpr int HEADS_PER_BLOCK = 8;

// Blocks: x key heads, each once for every 8 of its query heads; y sequences. `kept` has for each sequence the address of its rows of K key heads and K
// value heads (low half, high half) and their number; the new token's row is written behind them. A piece has a key, and a column, for each thread.
// Shared memory: 8 queries, 8 probabilities a thread, 32 floats.
template <class T> DEVICE void attention_next(const T* qkv, T* out, const uint32_t* kept, const Attention& a) {
  constexpr int HEADS = HEADS_PER_BLOCK;
  DYNAMIC_SHARED(memory);
  int hd = a.head_dim, n_threads = blockDim.x, kv_head = blockIdx.x % a.n_kv_heads, first_head = blockIdx.x / a.n_kv_heads * HEADS;
  int n_heads = min(HEADS, group_of(a) - first_head);
  first_head += kv_head * group_of(a);
  float *queries = (float*)memory, *probabilities = queries + HEADS * hd, *scratch = probabilities + HEADS * n_threads;
  const uint32_t* of_sequence = kept + 3 * blockIdx.y;
  int newest = of_sequence[2];
  uint64_t kept_width = 2 * uint64_t(a.n_kv_heads) * hd;
  T* keys = (T*)(uint64_t(of_sequence[0]) | uint64_t(of_sequence[1]) << 32) + kv_head * hd;
  T* values = keys + a.n_kv_heads * hd;
  const T* row = qkv + blockIdx.y * width_of(a);
  for (int i = threadIdx.x; i < n_heads * hd; i += n_threads) queries[i] = to_float(row[first_head * hd + i]);
  for (int i = threadIdx.x; i < hd; i += n_threads) {
    keys[newest * kept_width + i] = row[(a.n_heads + kv_head) * hd + i];
    values[newest * kept_width + i] = row[(a.n_heads + a.n_kv_heads + kv_head) * hd + i];
  }
  sync_block();

  float largest[HEADS], total[HEADS], sums[HEADS], factor = exponent_factor(a);
  UNROLL for (int g = 0; g < HEADS; g++) {
    largest[g] = -INFINITY;
    total[g] = sums[g] = 0;
  }
  for (int start = newest - min(newest, a.window - 1); start <= newest; start += n_threads) {
    int n_keys = min(n_threads, newest + 1 - start);
    float scores[HEADS] = {};
    if (int(threadIdx.x) < n_keys) {
      const T* key = keys + (start + threadIdx.x) * kept_width;
      with_chunk(in_packs(hd, keys), 0, hd, [&](auto at) {
        for (; at.first < hd; at.first += at.SIZE) {
          auto values = load(key, at);
          UNROLL for (int g = 0; g < HEADS; g++)
            if (g < n_heads)
              UNROLL for (int k = 0; k < at.SIZE; k++) scores[g] += queries[g * hd + at.first + k] * to_float(values.values[k]);
        }
      });
    }
    UNROLL for (int g = 0; g < HEADS; g++) {
      if (g >= n_heads) continue;
      float score = a.cap > 0 ? tanh_of(scores[g] * (a.scale / a.cap)) : scores[g];
      if (int(threadIdx.x) >= n_keys) score = -INFINITY;
      float most = fmaxf(largest[g], max_block(score, scratch));
      float shrink = power_of_two((largest[g] - most) * factor), p = power_of_two((score - most) * factor);
      largest[g] = most;
      total[g] = total[g] * shrink + p;
      sums[g] *= shrink;
      probabilities[g * n_threads + threadIdx.x] = p;
    }
    sync_block();
    if (int(threadIdx.x) < hd) {
      const T* value = values + start * kept_width + threadIdx.x;
      for (int k = 0; k < n_keys; k++) {
        float v = to_float(value[k * kept_width]);
        UNROLL for (int g = 0; g < HEADS; g++)
          if (g < n_heads) sums[g] += probabilities[g * n_threads + k] * v;
      }
    }
    sync_block();
  }
  UNROLL for (int g = 0; g < HEADS; g++) {
    if (g >= n_heads) continue;
    float norm = 1.0f / sum_block(total[g], scratch);
    if (int(threadIdx.x) < hd) out[(uint64_t(blockIdx.y) * a.n_heads + first_head + g) * hd + threadIdx.x] = from_float<T>(sums[g] * norm);
  }
}

KERNEL(attention_next_f32, const float* qkv, float* out, const uint32_t* kept, int n_heads, int n_kv_heads, int head_dim, float scale, int window, float cap) {
  attention_next(qkv, out, kept, Attention{n_heads, n_kv_heads, head_dim, scale, window, cap});
}
KERNEL(attention_next_bf16, const bf16* qkv, bf16* out, const uint32_t* kept, int n_heads, int n_kv_heads, int head_dim, float scale, int window, float cap) {
  attention_next(qkv, out, kept, Attention{n_heads, n_kv_heads, head_dim, scale, window, cap});
}

// to[i] = from[i] for some columns of rows, from one row width to another; one block a row.
template <class T> DEVICE void copy_columns(const T* from, T* to, int first, int from_width, int width) {
  for_each_chunk(in_packs(first | from_width | width, from, to), width, [&](auto at) {
    store(to + uint64_t(blockIdx.x) * width, at, load(from + uint64_t(blockIdx.x) * from_width + first, at));
  });
}

KERNEL(copy_columns_f32, const float* from, float* to, int first, int from_width, int width) { copy_columns(from, to, first, from_width, width); }
KERNEL(copy_columns_bf16, const bf16* from, bf16* to, int first, int from_width, int width) { copy_columns(from, to, first, from_width, width); }
