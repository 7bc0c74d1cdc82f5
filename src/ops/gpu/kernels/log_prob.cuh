// The head's reductions: a row of V raw logits to the log-probability of one token, and to the gradient of the logits. One block a row.
#pragma once

// The logarithm of a sum of exponentials whose exponents come a few at a time: every thread keeps its largest, and its sum relative to that, so that a row
// is read once. What is not a number spreads through the sums.
struct LogSumExp {
  float largest = -INFINITY, sum = 0;
};

// What is subtracted in front of an exponential, for exponents that may all be minus infinity.
DEVICE float base_of(float largest) { return largest == -INFINITY ? 0.0f : largest; }

template <int N> DEVICE void add_terms(LogSumExp& terms, const Pack<float, N>& exponents) {
  float most = terms.largest;
  UNROLL for (int k = 0; k < N; k++) most = fmaxf(most, exponents.values[k]);
  float base = base_of(most);
  terms.sum *= exp_of(terms.largest - base);
  UNROLL for (int k = 0; k < N; k++) terms.sum += exp_of(exponents.values[k] - base);
  terms.largest = most;
}

// Of the whole block, known to every thread.
DEVICE float log_sum_exp(const LogSumExp& terms, float* scratch) {
  float base = base_of(max_block(terms.largest, scratch));
  return base + logf(sum_block(terms.sum * exp_of(terms.largest - base), scratch));
}

DEVICE float capped(float logit, float cap) { return cap > 0 ? cap * tanh_of(logit / cap) : logit; }
template <int N> DEVICE Pack<float, N> capped(Pack<float, N> logits, float cap) {
  UNROLL for (int k = 0; k < N; k++) logits.values[k] = capped(logits.values[k], cap);
  return logits;
}

KERNEL(log_prob_forward_f32, const float* logits, const uint32_t* tokens, float* log_probs, float* log_sum_exps, int n_vocab, float cap) {
  SHARED(float, scratch, 32);
  const float* row = logits + uint64_t(blockIdx.x) * n_vocab;
  LogSumExp terms;
  for_each_chunk(in_packs(n_vocab, logits), n_vocab, [&](auto at) { add_terms(terms, capped(load(row, at), cap)); });
  float total = log_sum_exp(terms, scratch);
  if (threadIdx.x == 0) {
    log_sum_exps[blockIdx.x] = total;
    log_probs[blockIdx.x] = capped(row[tokens[blockIdx.x]], cap) - total;
  }
}

// onehot - softmax, times the slope of the cap: the gradient of a log-probability by its raw logits.
template <class T>
DEVICE void log_prob_backward(T* d_logits, const float* logits, const uint32_t* tokens, const float* log_sum_exps, int n_vocab, float cap) {
  uint64_t start = uint64_t(blockIdx.x) * n_vocab;
  int token = tokens[blockIdx.x];
  float log_sum_exp = log_sum_exps[blockIdx.x];
  for_each_chunk(in_packs(n_vocab, logits, d_logits), n_vocab, [&](auto at) {
    auto logits_here = capped(load(logits + start, at), cap);
    Pack<T, at.SIZE> d;
    UNROLL for (int k = 0; k < at.SIZE; k++) {
      float logit = logits_here.values[k], share = cap > 0 ? logit / cap : 0.0f;
      d.values[k] = from_float<T>(((at.first + k == token ? 1.0f : 0.0f) - exp_of(logit - log_sum_exp)) * (1.0f - share * share));
    }
    store(d_logits + start, at, d);
  });
}

KERNEL(log_prob_backward_f32, float* d_logits, const float* logits, const uint32_t* tokens, const float* log_sum_exps, int n_vocab, float cap) {
  log_prob_backward(d_logits, logits, tokens, log_sum_exps, n_vocab, cap);
}
KERNEL(log_prob_backward_bf16, bf16* d_logits, const float* logits, const uint32_t* tokens, const float* log_sum_exps, int n_vocab, float cap) {
  log_prob_backward(d_logits, logits, tokens, log_sum_exps, n_vocab, cap);
}
