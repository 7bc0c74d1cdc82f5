// Attention without tensor cores, for f32 and for any head width: the same walk over tiles and runs, with everything in f32 in shared memory.
//
// A block owns 16 rows, eight threads for each: a thread forms the scores of its row with two rows of a piece of 16, and every eighth sum.
#pragma once

constexpr int SMALL_TILE = 16, THREADS_PER_ROW = 8, SCORES_STRIDE = SMALL_TILE + 1;

// Copies rows, `stride` values apart, to rows of head_dim + 1 floats; zeros behind `n_rows`.
template <class T> DEVICE void load_rows(float* tile, const T* rows, uint64_t stride, int n_rows, int head_dim) {
  for (int i = threadIdx.x; i < SMALL_TILE * head_dim; i += ATTENTION_THREADS) {
    int row = i / head_dim, column = i % head_dim;
    tile[row * (head_dim + 1) + column] = row < n_rows ? to_float(rows[row * stride + column]) : 0.0f;
  }
}

// Writes the block's rows, each thread its sums.
template <class T> DEVICE void store_sums(const float* sums, float factor, T* rows, uint64_t stride, int n_rows, int head_dim) {
  int row = threadIdx.x / THREADS_PER_ROW;
  if (row >= n_rows) return;
  for (int i = threadIdx.x % THREADS_PER_ROW; i < head_dim; i += THREADS_PER_ROW)
    rows[row * stride + i] = from_float<T>(sums[row * (head_dim + 1) + i] * factor);
}

// The thread's sums of its row: `old` times what they are, plus the weighted rows of a piece.
DEVICE void add_weighted(float* sums, float old, const float* weights, const float* piece, int head_dim) {
  for (int i = threadIdx.x % THREADS_PER_ROW; i < head_dim; i += THREADS_PER_ROW) {
    float sum = sums[i] * old;
    for (int k = 0; k < SMALL_TILE; k++) sum += weights[k] * piece[k * (head_dim + 1) + i];
    sums[i] = sum;
  }
}

DEVICE float dot(const float* a, const float* b, int n) {
  float sum = 0;
  for (int i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

// A score without its exponent factor.
DEVICE float score_of(const float* query, const float* key, const Attention& a) {
  float product = dot(query, key, a.head_dim);
  return a.cap > 0 ? tanh_of(product * (a.scale / a.cap)) : product;
}

// Blocks: x heads, y tiles of queries. Shared memory: queries, keys, values, sums, probabilities.
template <class T>
DEVICE void attention_forward_any(const T* qkv, T* out, float* lse, const uint32_t* tiles, const uint32_t* runs, const Attention& a) {
  DYNAMIC_SHARED(memory);
  int stride = a.head_dim + 1, head = blockIdx.x, row = threadIdx.x / THREADS_PER_ROW, first = threadIdx.x % THREADS_PER_ROW;
  float *queries = (float*)memory, *keys = queries + SMALL_TILE * stride, *values = keys + SMALL_TILE * stride;
  float *sums = values + SMALL_TILE * stride + row * stride, *p = values + 2 * SMALL_TILE * stride + row * SCORES_STRIDE;
  Rows tile = tile_at(tiles, blockIdx.y), piece;
  Pieces left = pieces_of(tiles, runs, blockIdx.y, head, head + 1);
  uint64_t width = width_of(a), out_width = uint64_t(a.n_heads) * a.head_dim;
  const T* key_rows = qkv + (a.n_heads + head / group_of(a)) * a.head_dim;
  load_rows(queries, qkv + tile.row * width + head * a.head_dim, width, tile.n_rows, a.head_dim);
  for (int i = first; i < a.head_dim; i += THREADS_PER_ROW) sums[i] = 0;
  float largest = -INFINITY, total = 0, factor = exponent_factor(a);
  while (next_piece(left, SMALL_TILE, piece)) {
    sync_block();
    load_rows(keys, key_rows + piece.row * width, width, piece.n_rows, a.head_dim);
    load_rows(values, key_rows + piece.row * width + a.n_kv_heads * a.head_dim, width, piece.n_rows, a.head_dim);
    sync_block();
    float scores[2], most = largest, sum = 0;
    for (int k = 0; k < 2; k++) {
      int key = first + k * THREADS_PER_ROW;
      bool visible = key < piece.n_rows && sees(tile.position + row, piece.position + key, a.window);
      scores[k] = visible ? score_of(queries + row * stride, keys + key * stride, a) : -INFINITY;
      most = fmaxf(most, scores[k]);
    }
    for (int mask = 1; mask < THREADS_PER_ROW; mask *= 2) most = fmaxf(most, shuffle_xor(most, mask));
    float base = most == -INFINITY ? 0.0f : most * factor, shrink = power_of_two(largest * factor - base);
    largest = most;
    for (int k = 0; k < 2; k++) {
      float probability = power_of_two(scores[k] * factor - base);
      sum += probability;
      p[first + k * THREADS_PER_ROW] = probability;
    }
    for (int mask = 1; mask < THREADS_PER_ROW; mask *= 2) sum += shuffle_xor(sum, mask);
    total = total * shrink + sum;
    sync_warp();
    add_weighted(sums, shrink, p, values, a.head_dim);
  }
  if (first == 0 && row < tile.n_rows)
    lse[uint64_t(tile.row + row) * a.n_heads + head] = total > 0 ? largest * factor * LN_2 + logf(total) : -INFINITY;
  store_sums(sums - row * stride, total > 0 ? 1.0f / total : 0.0f, out + tile.row * out_width + head * a.head_dim, out_width, tile.n_rows, a.head_dim);
}

// dQ. Blocks: x heads, y tiles of queries. Shared memory: Q, dO, K, V, dQ, gradients of scores.
template <class T>
DEVICE void attention_backward_queries_any(const T* qkv, const T* d_out, const QueryFacts* facts, T* d_qkv, const uint32_t* tiles,
                                           const uint32_t* runs, const Attention& a) {
  DYNAMIC_SHARED(memory);
  int stride = a.head_dim + 1, head = blockIdx.x, row = threadIdx.x / THREADS_PER_ROW, first = threadIdx.x % THREADS_PER_ROW;
  float *queries = (float*)memory, *d_outs = queries + SMALL_TILE * stride, *keys = d_outs + SMALL_TILE * stride;
  float *values = keys + SMALL_TILE * stride, *sums = values + SMALL_TILE * stride, *d_scores = sums + SMALL_TILE * stride + row * SCORES_STRIDE;
  Rows tile = tile_at(tiles, blockIdx.y), piece;
  Pieces left = pieces_of(tiles, runs, blockIdx.y, head, head + 1);
  uint64_t width = width_of(a), out_width = uint64_t(a.n_heads) * a.head_dim;
  const T* key_rows = qkv + (a.n_heads + head / group_of(a)) * a.head_dim;
  load_rows(queries, qkv + tile.row * width + head * a.head_dim, width, tile.n_rows, a.head_dim);
  load_rows(d_outs, d_out + tile.row * out_width + head * a.head_dim, out_width, tile.n_rows, a.head_dim);
  for (int i = first; i < a.head_dim; i += THREADS_PER_ROW) sums[row * stride + i] = 0;
  QueryFacts query = row < tile.n_rows ? facts[uint64_t(tile.row + row) * a.n_heads + head] : QueryFacts{0, 0};
  while (next_piece(left, SMALL_TILE, piece)) {
    sync_block();
    load_rows(keys, key_rows + piece.row * width, width, piece.n_rows, a.head_dim);
    load_rows(values, key_rows + piece.row * width + a.n_kv_heads * a.head_dim, width, piece.n_rows, a.head_dim);
    sync_block();
    for (int key = first; key < SMALL_TILE; key += THREADS_PER_ROW) {
      bool visible = key < piece.n_rows && sees(tile.position + row, piece.position + key, a.window);
      float score = score_of(queries + row * stride, keys + key * stride, a), d_p = dot(d_outs + row * stride, values + key * stride, a.head_dim);
      softmax_backward(score, d_p, visible, query, exponent_factor(a), a.cap > 0);
      d_scores[key] = d_p;
    }
    sync_warp();
    add_weighted(sums + row * stride, 1, d_scores, keys, a.head_dim);
  }
  store_sums(sums, a.scale, d_qkv + tile.row * width + head * a.head_dim, width, tile.n_rows, a.head_dim);
}

// dK and dV. Blocks: x key heads, y tiles of keys. Shared memory: K, V, Q, dO, dK, dV, probabilities and gradients of scores, a row for each key.
template <class T>
DEVICE void attention_backward_keys_any(const T* qkv, const T* d_out, const QueryFacts* facts, T* d_qkv, const uint32_t* tiles,
                                        const uint32_t* runs, const Attention& a) {
  DYNAMIC_SHARED(memory);
  int stride = a.head_dim + 1, kv_head = blockIdx.x, row = threadIdx.x / THREADS_PER_ROW, first = threadIdx.x % THREADS_PER_ROW;
  float *keys = (float*)memory, *values = keys + SMALL_TILE * stride, *queries = values + SMALL_TILE * stride;
  float *d_outs = queries + SMALL_TILE * stride, *dk = d_outs + SMALL_TILE * stride, *dv = dk + SMALL_TILE * stride;
  float *p = dv + SMALL_TILE * stride + row * SCORES_STRIDE, *d_scores = p + SMALL_TILE * SCORES_STRIDE;
  Rows tile = tile_at(tiles, blockIdx.y), piece;
  Pieces left = pieces_of(tiles, runs, blockIdx.y, kv_head * group_of(a), (kv_head + 1) * group_of(a));
  uint64_t width = width_of(a), out_width = uint64_t(a.n_heads) * a.head_dim;
  uint64_t at_keys = tile.row * width + (a.n_heads + kv_head) * a.head_dim, at_values = at_keys + a.n_kv_heads * a.head_dim;
  load_rows(keys, qkv + at_keys, width, tile.n_rows, a.head_dim);
  load_rows(values, qkv + at_values, width, tile.n_rows, a.head_dim);
  for (int i = first; i < a.head_dim; i += THREADS_PER_ROW) dk[row * stride + i] = dv[row * stride + i] = 0;
  while (next_piece(left, SMALL_TILE, piece)) {
    sync_block();
    load_rows(queries, qkv + piece.row * width + piece.head * a.head_dim, width, piece.n_rows, a.head_dim);
    load_rows(d_outs, d_out + piece.row * out_width + piece.head * a.head_dim, out_width, piece.n_rows, a.head_dim);
    sync_block();
    for (int k = first; k < SMALL_TILE; k += THREADS_PER_ROW) {
      bool there = k < piece.n_rows, visible = there && sees(piece.position + k, tile.position + row, a.window);
      QueryFacts query = there ? facts[uint64_t(piece.row + k) * a.n_heads + piece.head] : QueryFacts{0, 0};
      float score = score_of(queries + k * stride, keys + row * stride, a), d_p = dot(d_outs + k * stride, values + row * stride, a.head_dim);
      softmax_backward(score, d_p, visible, query, exponent_factor(a), a.cap > 0);
      p[k] = score;
      d_scores[k] = d_p;
    }
    sync_warp();
    add_weighted(dk + row * stride, 1, d_scores, queries, a.head_dim);
    add_weighted(dv + row * stride, 1, p, d_outs, a.head_dim);
  }
  store_sums(dk, a.scale, d_qkv + at_keys, width, tile.n_rows, a.head_dim);
  store_sums(dv, 1, d_qkv + at_values, width, tile.n_rows, a.head_dim);
}

#define ATTENTION_ANY(SUFFIX, T)                                                                                                                  \
  KERNEL(attention_forward_any_##SUFFIX, const T* qkv, T* out, float* lse, const uint32_t* tiles, const uint32_t* runs, int n_heads,              \
         int n_kv_heads, int head_dim, float scale, int window, float cap) {                                                                     \
    attention_forward_any(qkv, out, lse, tiles, runs, Attention{n_heads, n_kv_heads, head_dim, scale, window, cap});                              \
  }                                                                                                                                               \
  KERNEL(attention_backward_queries_any_##SUFFIX, const T* qkv, const T* d_out, const float* facts, T* d_qkv, const uint32_t* tiles,              \
         const uint32_t* runs, int n_heads, int n_kv_heads, int head_dim, float scale, int window, float cap) {                                   \
    Attention a{n_heads, n_kv_heads, head_dim, scale, window, cap};                                                                              \
    attention_backward_queries_any(qkv, d_out, (const QueryFacts*)facts, d_qkv, tiles, runs, a);                                                  \
  }                                                                                                                                               \
  KERNEL(attention_backward_keys_any_##SUFFIX, const T* qkv, const T* d_out, const float* facts, T* d_qkv, const uint32_t* tiles,                 \
         const uint32_t* runs, int n_heads, int n_kv_heads, int head_dim, float scale, int window, float cap) {                                   \
    Attention a{n_heads, n_kv_heads, head_dim, scale, window, cap};                                                                              \
    attention_backward_keys_any(qkv, d_out, (const QueryFacts*)facts, d_qkv, tiles, runs, a);                                                     \
  }
ATTENTION_ANY(f32, float)
ATTENTION_ANY(bf16, bf16)
