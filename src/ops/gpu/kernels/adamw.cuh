// AdamW over all parameters in one launch, and the sum of squares of all gradients. A table says where each parameter's parts lie; a block finds its own by
// the number of the first block of each.
#pragma once

// Rows of the table, 64 bits each: addresses, how many values, flags, and the seed of random rounding.
enum { VALUE, GRADIENT, FIRST, SECOND, FIRST_SCALES, SECOND_SCALES, BESIDE, N_VALUES, FLAGS, SEED, TABLE_WIDTH };
enum { DECAYS = 1, EIGHT_BIT = 2, MASTER = 4, KAHAN = 8, STOCHASTIC = 16 };

// The parameter whose blocks hold block `block`: the last whose first block is not behind it.
DEVICE int parameter_of(const uint32_t* first_blocks, int n_parameters, uint32_t block) {
  int low = 0, high = n_parameters - 1;
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (first_blocks[middle] <= block) low = middle;
    else high = middle - 1;
  }
  return low;
}

struct AdamW { float keep, one_minus_beta1, beta2, one_minus_beta2, step_size, sqrt_correction2, eps, gradient_scale; };

DEVICE float updated(const AdamW& s, float keep, float w, float g, float& m, float& v) {
  g *= s.gradient_scale;
  m += s.one_minus_beta1 * (g - m);
  v = v * s.beta2 + s.one_minus_beta2 * g * g;
  float denominator = sqrtf(v) / s.sqrt_correction2 + s.eps;
  return w * keep - s.step_size * (m / denominator);
}

// What gradients are multiplied by so that their norm is at most `max_norm` (0: never); not finite where the norm is not.
DEVICE float clip_factor(double squares, double max_norm) {
  double norm = sqrt(squares);
  if (!isfinite(norm)) return NAN;
  return max_norm == 0.0 ? 1.0f : float(min(max_norm / (norm + 1e-6), 1.0));
}

// The code of the value in an ascending table of 256 that is nearest, the lower one of two.
DEVICE uint8_t nearest_code(const float* table, float value) {
  int low = 0, high = 256;  // the first entry that is not below the value
  while (low < high) {
    int middle = (low + high) / 2;
    if (table[middle] < value) low = middle + 1;
    else high = middle;
  }
  int above = min(max(low, 1), 255);
  return uint8_t(value - table[above - 1] <= table[above] - value ? above - 1 : above);
}

// A block of 256 threads takes `values_per_block` values, 256 at a time: one block of 8-bit moments. `codes` are two tables of 256, of the first moment
// and of the second.
template <class V>
DEVICE void adamw(const uint64_t* table, const uint32_t* first_blocks, int n_parameters, const float* codes, int values_per_block, AdamW s) {
  SHARED(float, scratch, 32);
  SHARED(float, shared_codes, 512);
  if (!isfinite(s.gradient_scale)) return;
  int parameter = parameter_of(first_blocks, n_parameters, blockIdx.x);
  const uint64_t* row = table + uint64_t(parameter) * TABLE_WIDTH;
  uint64_t n_values = row[N_VALUES], flags = row[FLAGS];
  V* value = (V*)row[VALUE];
  const float* gradient = (const float*)row[GRADIENT];
  float keep = flags & DECAYS ? s.keep : 1.0f;
  if (flags & EIGHT_BIT) {
    for (int i = threadIdx.x; i < 512; i += blockDim.x) shared_codes[i] = codes[i];
    sync_block();
  }
  uint64_t first = uint64_t(blockIdx.x - first_blocks[parameter]) * values_per_block;
  uint64_t parameter_seed = row[SEED];
  for (uint64_t start = first; start < first + values_per_block && start < n_values; start += 256) {
    uint64_t i = start + threadIdx.x, moments = start / 256;
    bool is_there = i < n_values;
    float m = 0, v = 0;
    if (is_there && (flags & EIGHT_BIT)) {
      m = shared_codes[((const uint8_t*)row[FIRST])[i]] * ((const float*)row[FIRST_SCALES])[moments];
      v = shared_codes[256 + ((const uint8_t*)row[SECOND])[i]] * ((const float*)row[SECOND_SCALES])[moments];
    } else if (is_there) {
      m = ((const float*)row[FIRST])[i];
      v = ((const float*)row[SECOND])[i];
    }
    if (is_there) {
      float g = gradient[i], w = to_float(value[i]);
      if (flags & MASTER) {
        float* master = (float*)row[BESIDE];
        master[i] = updated(s, keep, master[i], g, m, v);
        value[i] = from_float<V>(master[i]);
      } else if (flags & KAHAN) {
        V* lost = (V*)row[BESIDE];
        float exact = updated(s, keep, w + to_float(lost[i]), g, m, v);
        value[i] = from_float<V>(exact);
        lost[i] = from_float<V>(exact - to_float(value[i]));
      } else if (flags & STOCHASTIC) {
        float exact = updated(s, keep, w, g, m, v);
        uint32_t random = uint32_t(mix_in(parameter_seed, i)) & 0xffffu;
        if (isfinite(exact)) exact = float_of((bits_of(exact) + random) & 0xffff0000u);
        value[i] = from_float<V>(exact);
      } else {
        value[i] = from_float<V>(updated(s, keep, w, g, m, v));
      }
    }
    if (flags & EIGHT_BIT) {
      float largest_m = max_block(is_there ? fabsf(m) : 0.0f, scratch);
      sync_block();
      float largest_v = max_block(is_there ? fabsf(v) : 0.0f, scratch);
      sync_block();
      if (threadIdx.x == 0) {
        ((float*)row[FIRST_SCALES])[moments] = largest_m;
        ((float*)row[SECOND_SCALES])[moments] = largest_v;
      }
      if (is_there) {
        ((uint8_t*)row[FIRST])[i] = nearest_code(shared_codes, m * (largest_m > 0 ? 1.0f / largest_m : 0.0f));
        ((uint8_t*)row[SECOND])[i] = nearest_code(shared_codes + 256, v * (largest_v > 0 ? 1.0f / largest_v : 0.0f));
      }
    } else if (is_there) {
      ((float*)row[FIRST])[i] = m;
      ((float*)row[SECOND])[i] = v;
    }
  }
}

#define ADAMW_PARAMETERS                                                                                                                              \
  const uint64_t *table, const uint32_t *first_blocks, int n_parameters, const float *codes, int values_per_block, const double *squares,              \
      uint64_t max_norm_bits, float keep, float one_minus_beta1, float beta2, float one_minus_beta2, float step_size, float sqrt_correction2, float eps
#define ADAMW_ARGUMENTS                                               \
  table, first_blocks, n_parameters, codes, values_per_block, AdamW { \
    keep, one_minus_beta1, beta2, one_minus_beta2, step_size, sqrt_correction2, eps, clip_factor(squares[0], double_of(max_norm_bits)) \
  }

KERNEL(adamw_f32, ADAMW_PARAMETERS) { adamw<float>(ADAMW_ARGUMENTS); }
KERNEL(adamw_bf16, ADAMW_PARAMETERS) { adamw<bf16>(ADAMW_ARGUMENTS); }

// The sum of squares of a block's values of one gradient. The table has two columns: address and how many values.
KERNEL(sum_of_squares_f32, const uint64_t* table, const uint32_t* first_blocks, int n_gradients, int values_per_block, double* sums) {
  SHARED(double, scratch, 32);
  int index = parameter_of(first_blocks, n_gradients, blockIdx.x);
  const float* gradient = (const float*)table[2 * index];
  uint64_t n_values = table[2 * index + 1], first = uint64_t(blockIdx.x - first_blocks[index]) * values_per_block;
  double sum = 0;
  for (uint64_t i = first + threadIdx.x; i < first + values_per_block && i < n_values; i += blockDim.x) sum += double(gradient[i]) * double(gradient[i]);
  sum = sum_block(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block: the sum of all sums.
KERNEL(sum_of_sums_f32, const double* sums, int n_sums, double* total) {
  SHARED(double, scratch, 32);
  double sum = 0;
  for (int i = threadIdx.x; i < n_sums; i += blockDim.x) sum += sums[i];
  sum = sum_block(sum, scratch);
  if (threadIdx.x == 0) total[0] = sum;
}
