// Attention's forward on tensor cores (FlashAttention-2, arXiv 2307.08691): a block has 64 queries of one head and keeps their running maximum, sum
// and output in registers while it goes through the keys that they see.
#pragma once

// Shared memory: two stages of KEYS keys and KEYS values; the queries too where a thread has no registers for them, else they pass through a stage.
DEVICE constexpr int forward_keys(int head_dim) { return head_dim > 128 ? 32 : 64; }
DEVICE constexpr bool queries_in_registers(int head_dim) { return head_dim <= 128; }

// Blocks: x heads, y tiles of queries.
template <int HD>
DEVICE void attention_forward(const bf16* qkv, bf16* out, float* lse, const uint32_t* tiles, const uint32_t* runs, const Attention& a) {
  constexpr int KEYS = forward_keys(HD), STRIDE = stride_of(HD), STAGE = 2 * KEYS * STRIDE, STEPS = HD / 16;
  constexpr bool IN_REGISTERS = queries_in_registers(HD);
  DYNAMIC_SHARED(memory);
  bf16* stages = (bf16*)memory;
  bf16* query_tile = stages + (IN_REGISTERS ? STAGE : 2 * STAGE);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.x;
  Rows tile = tile_at(tiles, blockIdx.y);
  Pieces left = pieces_of(tiles, runs, blockIdx.y, head, head + 1);
  uint64_t width = width_of(a);
  const bf16* keys = qkv + (a.n_heads + head / group_of(a)) * a.head_dim;
  const bf16* values = keys + a.n_kv_heads * a.head_dim;

  stage<HD, TILE_ROWS>(query_tile, qkv + tile.row * width + head * a.head_dim, width, tile.n_rows, a.head_dim);
  commit_copies();
  query_tile += warp * 16 * STRIDE;
  Left queries[IN_REGISTERS ? STEPS : 1];
  auto load_queries = [&] {
    wait_for_copies<1>();
    sync_block();
    if constexpr (IN_REGISTERS)
      UNROLL for (int k = 0; k < STEPS; k++) queries[k] = load_left<STRIDE>(query_tile + k * 16);
  };
  auto start = [&](const Rows& piece, bf16* to) {
    stage<HD, KEYS>(to, keys + piece.row * width, width, piece.n_rows, a.head_dim);
    stage<HD, KEYS>(to + KEYS * STRIDE, values + piece.row * width, width, piece.n_rows, a.head_dim);
  };

  // Of the rows lane / 4 and lane / 4 + 8 of the warp's: the largest score, this lane's part of the sum, the sums of values.
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0}, sums[HD / 8][4];
  clear(sums);
  float factor = exponent_factor(a);
  int query = tile.position + warp * 16 + lane / 4;
  for_each_piece<KEYS, STAGE>(left, stages, start, load_queries, [&](const Rows& piece, const bf16* key_tile) {
    float scores[KEYS / 8][4];
    clear(scores);
    UNROLL for (int k = 0; k < STEPS; k++) {
      if constexpr (IN_REGISTERS) multiply_rows_by_rows<STRIDE>(scores, queries[k], key_tile + k * 16);
      else multiply_rows_by_rows<STRIDE>(scores, load_left<STRIDE>(query_tile + k * 16), key_tile + k * 16);
    }
    cap_scores(scores, a);
    if (piece.n_rows < KEYS || !sees_all(tile, piece, a.window)) {
      int first = lane % 4 * 2;
      UNROLL for (int n = 0; n < KEYS / 8; n++)
        UNROLL for (int i = 0; i < 4; i++) {
          int key = first + n * 8 + i % 2;
          if (key >= piece.n_rows || !sees(query + i / 2 * 8, piece.position + key, a.window)) scores[n][i] = -INFINITY;
        }
    }
    UNROLL for (int half = 0; half < 2; half++) {
      float most = largest[half];
      UNROLL for (int n = 0; n < KEYS / 8; n++) most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      most = fmaxf(most, shuffle_xor(most, 1));
      most = fmaxf(most, shuffle_xor(most, 2));
      float base = most == -INFINITY ? 0.0f : most * factor;  // A row that has seen nothing yet.
      float shrink = power_of_two(largest[half] * factor - base), sum = 0;
      largest[half] = most;
      UNROLL for (int n = 0; n < KEYS / 8; n++)
        UNROLL for (int i = 2 * half; i < 2 * half + 2; i++) {
          scores[n][i] = power_of_two(scores[n][i] * factor - base);
          sum += scores[n][i];
        }
      total[half] = total[half] * shrink + sum;
      UNROLL for (int n = 0; n < HD / 8; n++) {
        sums[n][2 * half] *= shrink;
        sums[n][2 * half + 1] *= shrink;
      }
    }
    multiply_sums_by_tile<STRIDE>(sums, scores, key_tile + KEYS * STRIDE);
  });

  UNROLL for (int half = 0; half < 2; half++) {
    total[half] += shuffle_xor(total[half], 1);
    total[half] += shuffle_xor(total[half], 2);
    int row = warp * 16 + lane / 4 + half * 8;
    float sum = total[half] > 0 ? largest[half] * factor * LN_2 + logf(total[half]) : -INFINITY;
    if (lane % 4 == 0 && row < tile.n_rows) lse[uint64_t(tile.row + row) * a.n_heads + head] = sum;
    total[half] = total[half] > 0 ? 1.0f / total[half] : 0.0f;
  }
  uint64_t out_width = uint64_t(a.n_heads) * a.head_dim;
  store_tile<HD>(sums, total[0], total[1], stages, out + tile.row * out_width + head * a.head_dim, out_width, tile.n_rows, a.head_dim);
}

#define ATTENTION_FORWARD(HD, BLOCKS)                                                                                                             \
  BOUNDED_KERNEL(ATTENTION_THREADS, BLOCKS, attention_forward_##HD##_bf16, const bf16* qkv, bf16* out, float* lse, const uint32_t* tiles,          \
                 const uint32_t* runs, int n_heads, int n_kv_heads, int head_dim, float scale, int window, float cap) {                           \
    attention_forward<HD>(qkv, out, lse, tiles, runs, Attention{n_heads, n_kv_heads, head_dim, scale, window, cap});                              \
  }
ATTENTION_FORWARD(64, 4)
ATTENTION_FORWARD(128, 3)
ATTENTION_FORWARD(256, 2)
