// Attention's backward on tensor cores, without atomics: one kernel goes from the queries over their keys for dQ, another from the keys over the
// queries that see them for dK and dV. Both form the probabilities P anew from the saved log-sum-exp. With D = rowsum(dO o O):
//
//   dV = P^T dO     dS = P o (dO V^T - D) o slope of the cap     dQ = scale dS K     dK = scale dS^T Q
//
// Rows of a factor come from the tile that the block owns, so that sums of the products lie as the next product takes them.
#pragma once

// What the backward knows of a query: the log-sum-exp of its exponents in base 2 (0 where it sees nothing), and D.
struct alignas(8) QueryFacts { float lse, delta; };

// Blocks of four warps, a warp for a (row, head) of `facts [N, H]`.
template <class T> DEVICE void attention_facts(const T* out, const T* d_out, const float* lse, QueryFacts* facts, int n_units, int head_dim) {
  int unit = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (unit >= n_units) return;
  const T *o = out + uint64_t(unit) * head_dim, *d = d_out + uint64_t(unit) * head_dim;
  float delta = 0;
  with_chunk<HEAD_CHUNK>(in_packs(head_dim, out, d_out), lane, head_dim, [&](auto at) {
    for (; at.first < head_dim; at.first += 32 * at.SIZE) {
      auto values = load(o, at), slopes = load(d, at);
      UNROLL for (int k = 0; k < at.SIZE; k++) delta += to_float(values.values[k]) * to_float(slopes.values[k]);
    }
  });
  delta = sum_warp(delta);
  if (lane == 0) facts[unit] = {lse[unit] == -INFINITY ? 0.0f : lse[unit] * LOG2_E, delta};
}

KERNEL(attention_facts_f32, const float* out, const float* d_out, const float* lse, float* facts, int n_units, int head_dim) {
  attention_facts(out, d_out, lse, (QueryFacts*)facts, n_units, head_dim);
}
KERNEL(attention_facts_bf16, const bf16* out, const bf16* d_out, const float* lse, float* facts, int n_units, int head_dim) {
  attention_facts(out, d_out, lse, (QueryFacts*)facts, n_units, head_dim);
}

// Rows of the other side that a block meets at once: with 256 wide heads 99 KiB of shared memory, what a block has at most on the smaller GPUs.
DEVICE constexpr int piece_rows(int head_dim) { return head_dim > 128 ? 16 : 32; }

// A score (capped, without its factor) becomes the probability, `d_p` the gradient of the uncapped score.
DEVICE void softmax_backward(float& score, float& d_p, bool visible, const QueryFacts& query, float factor, bool capped) {
  float p = visible ? power_of_two(score * factor - query.lse) : 0.0f;
  d_p = p * (d_p - query.delta) * (capped ? 1.0f - score * score : 1.0f);
  score = p;
}

// dQ. Blocks: x heads, y tiles of queries. Shared memory: the tiles of Q and dO, two stages of K and V.
template <int HD>
DEVICE void attention_backward_queries(const bf16* qkv, const bf16* d_out, const QueryFacts* facts, bf16* d_qkv, const uint32_t* tiles,
                                       const uint32_t* runs, const Attention& a) {
  constexpr int PIECE_ROWS = piece_rows(HD), STRIDE = stride_of(HD), STAGE = 2 * PIECE_ROWS * STRIDE;
  DYNAMIC_SHARED(memory);
  bf16 *query_tile = (bf16*)memory, *d_out_tile = query_tile + TILE_ROWS * STRIDE, *stages = d_out_tile + TILE_ROWS * STRIDE;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.x;
  Rows tile = tile_at(tiles, blockIdx.y);
  Pieces left = pieces_of(tiles, runs, blockIdx.y, head, head + 1);
  uint64_t width = width_of(a), out_width = uint64_t(a.n_heads) * a.head_dim;
  const bf16* keys = qkv + (a.n_heads + head / group_of(a)) * a.head_dim;
  const bf16* values = keys + a.n_kv_heads * a.head_dim;

  stage<HD, TILE_ROWS>(query_tile, qkv + tile.row * width + head * a.head_dim, width, tile.n_rows, a.head_dim);
  stage<HD, TILE_ROWS>(d_out_tile, d_out + tile.row * out_width + head * a.head_dim, out_width, tile.n_rows, a.head_dim);
  QueryFacts query[2];
  auto load_facts = [&] {
    UNROLL for (int half = 0; half < 2; half++) {
      int row = warp * 16 + lane / 4 + half * 8;
      query[half] = row < tile.n_rows ? facts[uint64_t(tile.row + row) * a.n_heads + head] : QueryFacts{0, 0};
    }
  };
  auto start = [&](const Rows& piece, bf16* to) {
    stage<HD, PIECE_ROWS>(to, keys + piece.row * width, width, piece.n_rows, a.head_dim);
    stage<HD, PIECE_ROWS>(to + PIECE_ROWS * STRIDE, values + piece.row * width, width, piece.n_rows, a.head_dim);
  };
  query_tile += warp * 16 * STRIDE;
  d_out_tile += warp * 16 * STRIDE;
  float dq[HD / 8][4];
  clear(dq);
  float factor = exponent_factor(a);
  int position = tile.position + warp * 16 + lane / 4;
  for_each_piece<PIECE_ROWS, STAGE>(left, stages, start, load_facts, [&](const Rows& piece, const bf16* key_tile) {
    const bf16* value_tile = key_tile + PIECE_ROWS * STRIDE;
    float scores[PIECE_ROWS / 8][4], d_scores[PIECE_ROWS / 8][4];
    clear(scores);
    clear(d_scores);
    UNROLL for (int k = 0; k < HD; k += 16) {
      multiply_rows_by_rows<STRIDE>(scores, load_left<STRIDE>(query_tile + k), key_tile + k);
      multiply_rows_by_rows<STRIDE>(d_scores, load_left<STRIDE>(d_out_tile + k), value_tile + k);
    }
    cap_scores(scores, a);
    bool all = piece.n_rows == PIECE_ROWS && sees_all(tile, piece, a.window);
    UNROLL for (int n = 0; n < PIECE_ROWS / 8; n++)
      UNROLL for (int i = 0; i < 4; i++) {
        int key = lane % 4 * 2 + n * 8 + i % 2;
        bool visible = all || (key < piece.n_rows && sees(position + i / 2 * 8, piece.position + key, a.window));
        softmax_backward(scores[n][i], d_scores[n][i], visible, query[i / 2], factor, a.cap > 0);
      }
    multiply_sums_by_tile<STRIDE>(dq, d_scores, key_tile);
  });
  store_tile<HD>(dq, a.scale, a.scale, (bf16*)memory, d_qkv + tile.row * width + head * a.head_dim, width, tile.n_rows, a.head_dim);
}

// dK and dV, or one of both. Blocks: x key heads, y tiles of keys. Shared memory: the tiles of K and V, two stages of Q and
// dO; what is known of a query lies in the gap behind its row.
template <int HD, bool DK, bool DV>
DEVICE void attention_backward_keys(const bf16* qkv, const bf16* d_out, const QueryFacts* facts, bf16* d_qkv, const uint32_t* tiles,
                                    const uint32_t* runs, const Attention& a) {
  constexpr int PIECE_ROWS = piece_rows(HD), STRIDE = stride_of(HD), STAGE = 2 * PIECE_ROWS * STRIDE;
  DYNAMIC_SHARED(memory);
  bf16 *key_tile = (bf16*)memory, *value_tile = key_tile + TILE_ROWS * STRIDE, *stages = value_tile + TILE_ROWS * STRIDE;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.x;
  Rows tile = tile_at(tiles, blockIdx.y);
  Pieces left = pieces_of(tiles, runs, blockIdx.y, kv_head * group_of(a), (kv_head + 1) * group_of(a));
  uint64_t width = width_of(a), out_width = uint64_t(a.n_heads) * a.head_dim;
  uint64_t keys = tile.row * width + (a.n_heads + kv_head) * a.head_dim, values = keys + a.n_kv_heads * a.head_dim;
  auto start = [&](const Rows& piece, bf16* to) {
    stage<HD, PIECE_ROWS>(to, qkv + piece.row * width + piece.head * a.head_dim, width, piece.n_rows, a.head_dim);
    stage<HD, PIECE_ROWS>(to + PIECE_ROWS * STRIDE, d_out + piece.row * out_width + piece.head * a.head_dim, out_width, piece.n_rows, a.head_dim);
    int row = threadIdx.x;
    if (row < PIECE_ROWS) {
      bool there = row < piece.n_rows;
      const QueryFacts* from = facts + uint64_t(piece.row + (there ? row : 0)) * a.n_heads + piece.head;
      copy_async<8>(to + row * STRIDE + HD, from, there);
    }
  };

  stage<HD, TILE_ROWS>(key_tile, qkv + keys, width, tile.n_rows, a.head_dim);
  stage<HD, TILE_ROWS>(value_tile, qkv + values, width, tile.n_rows, a.head_dim);
  key_tile += warp * 16 * STRIDE;
  value_tile += warp * 16 * STRIDE;
  float dk[DK ? HD / 8 : 2][4], dv[DV ? HD / 8 : 2][4];
  clear(dk);
  clear(dv);
  float factor = exponent_factor(a);
  int position = tile.position + warp * 16 + lane / 4;
  for_each_piece<PIECE_ROWS, STAGE>(left, stages, start, [] {}, [&](const Rows& piece, const bf16* query_tile) {
    const bf16* d_out_tile = query_tile + PIECE_ROWS * STRIDE;
    float scores[PIECE_ROWS / 8][4], d_scores[PIECE_ROWS / 8][4];  // Transposed: a row for each key.
    clear(scores);
    clear(d_scores);
    UNROLL for (int k = 0; k < HD; k += 16) {
      multiply_rows_by_rows<STRIDE>(scores, load_left<STRIDE>(key_tile + k), query_tile + k);
      if constexpr (DK) multiply_rows_by_rows<STRIDE>(d_scores, load_left<STRIDE>(value_tile + k), d_out_tile + k);
    }
    cap_scores(scores, a);
    bool all = piece.n_rows == PIECE_ROWS && sees_all(piece, tile, a.window);
    UNROLL for (int n = 0; n < PIECE_ROWS / 8; n++)
      UNROLL for (int i = 0; i < 4; i++) {
        int query = lane % 4 * 2 + n * 8 + i % 2;
        bool visible = all || (query < piece.n_rows && sees(piece.position + query, position + i / 2 * 8, a.window));
        softmax_backward(scores[n][i], d_scores[n][i], visible, *(const QueryFacts*)(query_tile + query * STRIDE + HD), factor, a.cap > 0);
      }
    if constexpr (DV) multiply_sums_by_tile<STRIDE>(dv, scores, d_out_tile);
    if constexpr (DK) multiply_sums_by_tile<STRIDE>(dk, d_scores, query_tile);
  });
  if constexpr (DK) store_tile<HD>(dk, a.scale, a.scale, (bf16*)memory, d_qkv + keys, width, tile.n_rows, a.head_dim);
  if constexpr (DV) store_tile<HD>(dv, 1, 1, (bf16*)memory, d_qkv + values, width, tile.n_rows, a.head_dim);
}

#define ATTENTION_BACKWARD(NAME, BLOCKS, CALL)                                                                                                     \
  BOUNDED_KERNEL(ATTENTION_THREADS, BLOCKS, attention_backward_##NAME##_bf16, const bf16* qkv, const bf16* d_out, const float* facts, bf16* d_qkv, \
                 const uint32_t* tiles, const uint32_t* runs, int n_heads, int n_kv_heads, int head_dim, float scale, int window, float cap) {     \
    Attention a{n_heads, n_kv_heads, head_dim, scale, window, cap};                                                                               \
    CALL(qkv, d_out, (const QueryFacts*)facts, d_qkv, tiles, runs, a);                                                                            \
  }
ATTENTION_BACKWARD(queries_64, 3, attention_backward_queries<64>)
ATTENTION_BACKWARD(queries_128, 3, attention_backward_queries<128>)
ATTENTION_BACKWARD(queries_256, 2, attention_backward_queries<256>)
ATTENTION_BACKWARD(keys_64, 3, (attention_backward_keys<64, true, true>))
ATTENTION_BACKWARD(keys_128, 2, (attention_backward_keys<128, true, true>))
// A thread has no registers for the sums of both.
ATTENTION_BACKWARD(keys_256, 2, (attention_backward_keys<256, true, false>))
ATTENTION_BACKWARD(values_256, 2, (attention_backward_keys<256, false, true>))
