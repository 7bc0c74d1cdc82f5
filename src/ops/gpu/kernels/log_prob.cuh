// The head's reductions: a row of V raw logits to the log-probability of one token, and to the gradient of the logits. One block a row.
#pragma once

DEVICE float capped(float logit, float cap) { return cap > 0.0f ? cap * tanhf(logit / cap) : logit; }

// log_probs[row] and log_sum_exps[row], in one pass over the logits: every thread keeps its largest and its sum relative to that.
KERNEL(log_prob_forward_f32, const float* logits, const uint32_t* tokens, float* log_probs, float* log_sum_exps, int n_vocab, float cap) {
  SHARED(float, scratch, 32);
  const float* row = logits + uint64_t(blockIdx.x) * n_vocab;
  float largest = -INFINITY, sum = 0;
  for (int i = threadIdx.x; i < n_vocab; i += blockDim.x) {
    float logit = capped(row[i], cap);
    if (logit > largest) {
      sum = sum * expf(largest - logit) + 1.0f;
      largest = logit;
    } else {
      sum += expf(logit - largest);
    }
  }
  float of_all = max_block(largest, scratch);
  float total = sum_block(sum > 0 ? sum * expf(largest - of_all) : 0.0f, scratch);
  if (threadIdx.x == 0) {
    float log_sum_exp = of_all + logf(total);
    log_sum_exps[blockIdx.x] = log_sum_exp;
    log_probs[blockIdx.x] = capped(row[tokens[blockIdx.x]], cap) - log_sum_exp;
  }
}

// g (onehot - softmax), times the slope of the cap: the gradient of the raw logits. `gradients` may be absent: then g is 1.
template <class T>
DEVICE void log_prob_backward(T* d_logits, const float* logits, const uint32_t* tokens, const float* log_sum_exps, const float* gradients, int n_vocab,
                              float cap) {
  uint64_t start = uint64_t(blockIdx.x) * n_vocab;
  int token = tokens[blockIdx.x];
  float log_sum_exp = log_sum_exps[blockIdx.x], g = gradients ? gradients[blockIdx.x] : 1.0f;
  for (int i = threadIdx.x; i < n_vocab; i += blockDim.x) {
    float logit = capped(logits[start + i], cap), ratio = cap > 0.0f ? logit / cap : 0.0f;
    float d = g * ((i == token ? 1.0f : 0.0f) - expf(logit - log_sum_exp)) * (1.0f - ratio * ratio);
    d_logits[start + i] = from_float<T>(d);
  }
}

KERNEL(log_prob_backward_f32, float* d_logits, const float* logits, const uint32_t* tokens, const float* log_sum_exps, const float* gradients,
       int n_vocab, float cap) {
  log_prob_backward(d_logits, logits, tokens, log_sum_exps, gradients, n_vocab, cap);
}
KERNEL(log_prob_backward_bf16, bf16* d_logits, const float* logits, const uint32_t* tokens, const float* log_sum_exps, const float* gradients,
       int n_vocab, float cap) {
  log_prob_backward(d_logits, logits, tokens, log_sum_exps, gradients, n_vocab, cap);
}
