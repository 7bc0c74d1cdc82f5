// KL(reference || policy) of a position's next-token distributions, from V raw logits of either model. One block a position.
#pragma once

// `d_logits`, where it is wanted, is `factor` (softmax(policy) - softmax(reference)), times the slope of the policy's cap: not a number where the
// divergence is none, since no update may come of it.
template <class T>
DEVICE void divergence(float* divergences, T* d_logits, const float* reference, const float* policy, const float* factors, int n_vocab,
                       float reference_cap, float policy_cap) {
  SHARED(float, scratch, 32);
  uint64_t start = uint64_t(blockIdx.x) * n_vocab;
  reference += start, policy += start;
  LogSumExp reference_terms, policy_terms;
  bool packed = in_packs(n_vocab, reference, policy, d_logits + start);
  for_each_chunk(packed, n_vocab, [&](auto at) {
    add_terms(reference_terms, capped(load(reference, at), reference_cap));
    add_terms(policy_terms, capped(load(policy, at), policy_cap));
  });
  float reference_norm = log_sum_exp(reference_terms, scratch), policy_norm = log_sum_exp(policy_terms, scratch);
  float sum = 0, factor = factors ? factors[blockIdx.x] : 0.0f;
  for_each_chunk(packed, n_vocab, [&](auto at) {
    auto r = capped(load(reference, at), reference_cap), p = capped(load(policy, at), policy_cap);
    Pack<T, at.SIZE> d;
    UNROLL for (int k = 0; k < at.SIZE; k++) {
      float log_reference = r.values[k] - reference_norm, log_policy = p.values[k] - policy_norm;
      float of_reference = exp_of(log_reference), of_policy = exp_of(log_policy);
      // Both sum to 1: with them in, errors of the norms cancel to first order.
      sum += of_reference * (log_reference - log_policy) - of_reference + of_policy;
      float share = policy_cap > 0 ? p.values[k] / policy_cap : 0.0f;
      d.values[k] = from_float<T>(factor * (of_policy - of_reference) * (1.0f - share * share));
    }
    if (factors) store(d_logits + start, at, d);
  });
  float total = sum_block(sum, scratch);
  if (threadIdx.x != 0) return;
  divergences[blockIdx.x] = total;
  // The block has been in step since its threads stored theirs.
  if (factors && !isfinite(total)) d_logits[start] = from_float<T>(NAN);
}

KERNEL(divergence_f32, float* divergences, float* d_logits, const float* reference, const float* policy, const float* factors, int n_vocab,
       float reference_cap, float policy_cap) {
  divergence(divergences, d_logits, reference, policy, factors, n_vocab, reference_cap, policy_cap);
}
KERNEL(divergence_bf16, float* divergences, bf16* d_logits, const float* reference, const float* policy, const float* factors, int n_vocab,
       float reference_cap, float policy_cap) {
  divergence(divergences, d_logits, reference, policy, factors, n_vocab, reference_cap, policy_cap);
}
