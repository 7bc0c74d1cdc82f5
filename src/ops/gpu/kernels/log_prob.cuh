// The head's reductions: a row of V raw logits to the log-probability of one token, and to the gradient of the logits. One block a row.
#pragma once

// Every thread keeps its largest logit and its sum relative to that, so that the logits are read once. What is not a number spreads through the sums.
KERNEL(log_prob_forward_f32, const float* logits, const uint32_t* tokens, float* log_probs, float* log_sum_exps, int n_vocab, float cap) {
  SHARED(float, scratch, 32);
  const float* row = logits + uint64_t(blockIdx.x) * n_vocab;
  float largest = -INFINITY, sum = 0;
  // What is subtracted in front of an exponential, for exponents that may all be minus infinity.
  auto base_of = [](float most) { return most == -INFINITY ? 0.0f : most; };
  for_each_chunk(in_packs(n_vocab, logits), n_vocab, [&](auto at) {
    auto chunk = load(row, at);
    float most = largest;
    UNROLL for (int k = 0; k < at.SIZE; k++) {
      if (cap > 0) chunk.values[k] = cap * tanh_of(chunk.values[k] / cap);
      most = fmaxf(most, chunk.values[k]);
    }
    float base = base_of(most);
    sum *= exp_of(largest - base);
    UNROLL for (int k = 0; k < at.SIZE; k++) sum += exp_of(chunk.values[k] - base);
    largest = most;
  });
  float base = base_of(max_block(largest, scratch));
  float total = sum_block(sum * exp_of(largest - base), scratch);
  if (threadIdx.x == 0) {
    float log_sum_exp = base + logf(total), logit = row[tokens[blockIdx.x]];
    log_sum_exps[blockIdx.x] = log_sum_exp;
    log_probs[blockIdx.x] = (cap > 0 ? cap * tanh_of(logit / cap) : logit) - log_sum_exp;
  }
}

// g (onehot - softmax), times the slope of the cap: the gradient of the raw logits. `gradients` may be absent: then g is 1.
template <class T>
DEVICE void log_prob_backward(T* d_logits, const float* logits, const uint32_t* tokens, const float* log_sum_exps, const float* gradients, int n_vocab,
                              float cap) {
  uint64_t start = uint64_t(blockIdx.x) * n_vocab;
  int token = tokens[blockIdx.x];
  float log_sum_exp = log_sum_exps[blockIdx.x], g = gradients ? gradients[blockIdx.x] : 1.0f;
  for_each_chunk(in_packs(n_vocab, logits, d_logits), n_vocab, [&](auto at) {
    auto chunk = load(logits + start, at);
    Pack<T, at.SIZE> d;
    UNROLL for (int k = 0; k < at.SIZE; k++) {
      float logit = chunk.values[k], slope = 1;
      if (cap > 0) {
        float share = tanh_of(logit / cap);
        logit = cap * share;
        slope = 1.0f - share * share;
      }
      d.values[k] = from_float<T>(g * ((at.first + k == token ? 1.0f : 0.0f) - exp_of(logit - log_sum_exp)) * slope);
    }
    store(d_logits + start, at, d);
  });
}

KERNEL(log_prob_backward_f32, float* d_logits, const float* logits, const uint32_t* tokens, const float* log_sum_exps, const float* gradients,
       int n_vocab, float cap) {
  log_prob_backward(d_logits, logits, tokens, log_sum_exps, gradients, n_vocab, cap);
}
KERNEL(log_prob_backward_bf16, bf16* d_logits, const float* logits, const uint32_t* tokens, const float* log_sum_exps, const float* gradients,
       int n_vocab, float cap) {
  log_prob_backward(d_logits, logits, tokens, log_sum_exps, gradients, n_vocab, cap);
}
