// What the attention kernels share: who sees whom, tiles in shared memory, and products of tiles.
//
// A block owns a tile: consecutive rows of one segment. The host names the runs of rows on the other side that it meets: for queries the keys that
// they see, for keys the queries that see them. A block goes through its runs in pieces, and loads a piece while it computes with the one before.
#pragma once

// Rows of qkv hold the query heads, the key heads, the value heads. `window` is INT_MAX for none, `cap` 0 for none.
struct Attention { int n_heads, n_kv_heads, head_dim; float scale; int window; float cap; };

DEVICE uint64_t width_of(const Attention& a) { return uint64_t(a.n_heads + 2 * a.n_kv_heads) * a.head_dim; }
DEVICE int group_of(const Attention& a) { return a.n_heads / a.n_kv_heads; }

// Rows with consecutive positions in their sequence. `head` is the query head.
struct Rows { int row, n_rows, position, head; };

// What is left of a tile's runs: for each head in turn, each run in pieces.
struct Pieces { const uint32_t *first, *end, *run; int offset, head, end_head; };

// Tile i of `tiles`: row, rows, position, first run and end of its runs. A run is its row, rows and position.
DEVICE Rows tile_at(const uint32_t* tiles, int i) { return {int(tiles[5 * i]), int(tiles[5 * i + 1]), int(tiles[5 * i + 2]), 0}; }

DEVICE Pieces pieces_of(const uint32_t* tiles, const uint32_t* runs, int i, int head, int end_head) {
  const uint32_t *first = runs + 3 * uint64_t(tiles[5 * i + 3]), *end = runs + 3 * uint64_t(tiles[5 * i + 4]);
  return {first, end, first, 0, first == end ? end_head : head, end_head};
}

// Whether there is a next piece of at most `size` rows.
DEVICE bool next_piece(Pieces& left, int size, Rows& piece) {
  if (left.head == left.end_head) return false;
  int n_rows = left.run[1];
  piece = {int(left.run[0]) + left.offset, min(size, n_rows - left.offset), int(left.run[2]) + left.offset, left.head};
  left.offset += size;
  if (left.offset >= n_rows) {
    left.offset = 0;
    left.run += 3;
    if (left.run == left.end) {
      left.run = left.first;
      left.head++;
    }
  }
  return true;
}

// Query and key by their positions.
DEVICE bool sees(int query, int key, int window) { return key <= query && query - key < window; }

// Whether each of these queries sees each of these keys.
DEVICE bool sees_all(const Rows& queries, const Rows& keys, int window) {
  return keys.position + keys.n_rows - 1 <= queries.position && queries.position + queries.n_rows - 1 - keys.position < window;
}

// Probabilities are powers of two of `exponent_factor` times what `score` makes of a product q k.
DEVICE float exponent_factor(const Attention& a) { return (a.cap > 0 ? a.cap : a.scale) * LOG2_E; }
template <int N> DEVICE void cap_scores(float (&products)[N][4], const Attention& a) {
  if (!(a.cap > 0)) return;
  float factor = a.scale / a.cap;
  UNROLL for (int n = 0; n < N; n++)
    UNROLL for (int i = 0; i < 4; i++) products[n][i] = tanh_of(products[n][i] * factor);
}

// --- Tensor cores: blocks of four warps, of which each has 16 rows of the block's 64.

constexpr int ATTENTION_THREADS = 128, TILE_ROWS = 64;

// Values from row to row of a tile in shared memory: 16 bytes more than a row has, so that eight rows at one column lie in different banks.
DEVICE constexpr int stride_of(int head_dim) { return head_dim + 8; }

// Starts to copy `n_rows` rows, `stride` values apart, into a tile of ROWS x HD; what lies behind them or behind `head_dim` becomes zero.
template <int HD, int ROWS> DEVICE void stage(bf16* tile, const bf16* rows, uint64_t stride, int n_rows, int head_dim) {
  constexpr int PACKS = HD / 8, STEP = ATTENTION_THREADS / PACKS;
  int first = threadIdx.x / PACKS, column = threadIdx.x % PACKS * 8;
  const bf16* from = rows + first * stride + column;
  bf16* to = tile + first * stride_of(HD) + column;
  if (column >= head_dim) n_rows = 0;
  UNROLL for (int row = 0; row < ROWS; row += STEP) {
    bool there = first + row < n_rows;
    copy_async<16>(to + row * stride_of(HD), there ? from : rows, there);
    from += STEP * stride;
  }
}

// Does `work` with each piece, at the stage where `start` has copied it, while the next one is copied to the other of two stages of SIZE values.
// `meanwhile` is done while the first is copied. In the end nobody reads the stages any more.
template <int ROWS, int SIZE, class Start, class Meanwhile, class Work>
DEVICE void for_each_piece(Pieces left, bf16* stages, Start start, Meanwhile meanwhile, Work work) {
  Rows piece, next;
  bool more = next_piece(left, ROWS, piece);
  if (more) start(piece, stages);
  commit_copies();
  meanwhile();
  for (int now = 0; more; now ^= 1) {
    wait_for_copies<0>();
    sync_block();  // The piece is there for all, and nobody reads the one before any more.
    more = next_piece(left, ROWS, next);
    if (more) start(next, stages + (now ^ 1) * SIZE);
    commit_copies();
    work(piece, stages + now * SIZE);
    piece = next;
  }
  wait_for_copies<0>();
  sync_block();
}

// Registers of a factor of 16 x 16, and of one of 16 x 16 that is two of 16 x 8 side by side.
struct Left { uint32_t r[4]; };
struct Right { uint32_t low[2], high[2]; };

// a of `multiply_add_tile`: rows and columns as they lie.
template <int STRIDE> DEVICE Left load_left(const bf16* tile) {
  int lane = threadIdx.x % 32;
  Left a;
  load_tiles(a.r[0], a.r[1], a.r[2], a.r[3], tile + lane % 16 * STRIDE + lane / 16 * 8);
  return a;
}

// b from rows that are its columns: 16 of them, for two tiles of 8.
template <int STRIDE> DEVICE Right load_right_of_columns(const bf16* tile) {
  int lane = threadIdx.x % 32;
  Right b;
  load_tiles(b.low[0], b.low[1], b.high[0], b.high[1], tile + (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8);
  return b;
}

// b from its rows.
template <int STRIDE> DEVICE Right load_right_of_rows(const bf16* tile) {
  int lane = threadIdx.x % 32;
  Right b;
  load_tiles_transposed(b.low[0], b.low[1], b.high[0], b.high[1], tile + lane % 16 * STRIDE + lane / 16 * 8);
  return b;
}

template <int N> DEVICE void clear(float (&sums)[N][4]) {
  UNROLL for (int n = 0; n < N; n++)
    UNROLL for (int i = 0; i < 4; i++) sums[n][i] = 0;
}

// sums += a bᵀ for a column step of 16: `a` 16 x 16, `b` the rows of the other tile at these columns.
template <int STRIDE, int N> DEVICE void multiply_rows_by_rows(float (&sums)[N][4], const Left& a, const bf16* b) {
  UNROLL for (int n = 0; n < N; n += 2) {
    Right right = load_right_of_columns<STRIDE>(b + n * 8 * STRIDE);
    multiply_add_tile(sums[n], a.r, right.low);
    multiply_add_tile(sums[n + 1], a.r, right.high);
  }
}

// sums (16 x 8 N) += rounded p (16 x 8 M) times the tile `b` (8 M rows). What a lane holds of two neighbouring sums is what it holds of a factor.
template <int STRIDE, int N, int M> DEVICE void multiply_sums_by_tile(float (&sums)[N][4], const float (&p)[M][4], const bf16* b) {
  UNROLL for (int m = 0; m < M; m += 2) {
    Left a = {{pack_bf16(p[m][0], p[m][1]), pack_bf16(p[m][2], p[m][3]), pack_bf16(p[m + 1][0], p[m + 1][1]), pack_bf16(p[m + 1][2], p[m + 1][3])}};
    UNROLL for (int n = 0; n < N; n += 2) {
      Right right = load_right_of_rows<STRIDE>(b + m * 8 * STRIDE + n * 8);
      multiply_add_tile(sums[n], a.r, right.low);
      multiply_add_tile(sums[n + 1], a.r, right.high);
    }
  }
}

// Writes the block's 64 x HD sums, a warp its 16 rows (the upper eight times `upper`, the lower `lower`), rounded. They go through `shared`, room for
// the whole tile that no thread reads any more, to be stored 16 bytes at a time.
template <int HD>
DEVICE void store_tile(const float (&sums)[HD / 8][4], float upper, float lower, bf16* shared, bf16* out, uint64_t stride, int n_rows, int head_dim) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  bf16* own = shared + warp * 16 * stride_of(HD);
  bf16* pair = own + lane / 4 * stride_of(HD) + lane % 4 * 2;
  UNROLL for (int n = 0; n < HD / 8; n++) {
    *(uint32_t*)(pair + n * 8) = pack_bf16(sums[n][0] * upper, sums[n][1] * upper);
    *(uint32_t*)(pair + 8 * stride_of(HD) + n * 8) = pack_bf16(sums[n][2] * lower, sums[n][3] * lower);
  }
  sync_warp();
  for (int i = lane; i < 16 * HD / 8; i += 32) {
    int row = i / (HD / 8), column = i % (HD / 8) * 8;
    if (warp * 16 + row < n_rows && column < head_dim)
      *(Pack<bf16>*)(out + (warp * 16 + row) * stride + column) = *(const Pack<bf16>*)(own + row * stride_of(HD) + column);
  }
  sync_warp();
}
