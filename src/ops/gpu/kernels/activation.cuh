// The gated MLP's middle, `act(gate) * up`, and its gradients. A row of `gate_up` holds the F gates, then the F ups.
#pragma once

struct Activated { float value, slope; };

DEVICE Activated activate(int kind, float x) {
  if (kind == 0) {  // x sigmoid(x)
    float s = 1.0f / (1.0f + expf(-x));
    return {x * s, s * (1.0f + x * (1.0f - s))};
  }
  if (kind == 1) {  // x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    const float c = 0.7978845608028654f, k = 0.044715f;
    float t = tanh_of(c * (x + k * x * x * x));
    return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * c * (1.0f + 3.0f * k * x * x)};
  }
  float phi = 0.5f * (1.0f + erff(x * 0.7071067811865476f));  // x Phi(x)
  return {x * phi, phi + x * 0.3989422804014327f * expf(-0.5f * x * x)};
}

// Blocks: x over a row, y and z over rows (row = z * gridDim.y + y). `width` is F.
template <class T> DEVICE void activation_forward(const T* gate_up, T* y, int n_rows, int width, int kind) {
  int row = blockIdx.z * gridDim.y + blockIdx.y;
  if (row >= n_rows) return;
  const T* gates = gate_up + uint64_t(row) * 2 * width;
  with_chunk(in_packs(width, gate_up, y), blockIdx.x * blockDim.x + threadIdx.x, width, [&](auto at) {
    ROLLED for (; at.first < width; at.first += gridDim.x * blockDim.x * at.SIZE) {
      auto gate = load(gates, at), up = load(gates + width, at);
      UNROLL for (int k = 0; k < at.SIZE; k++)
        up.values[k] = from_float<T>(activate(kind, to_float(gate.values[k])).value * to_float(up.values[k]));
      store(y + uint64_t(row) * width, at, up);
    }
  });
}

template <class T> DEVICE void activation_backward(const T* gate_up, const T* dy, T* y, T* d_gate_up, int n_rows, int width, int kind) {
  int row = blockIdx.z * gridDim.y + blockIdx.y;
  if (row >= n_rows) return;
  const T* gates = gate_up + uint64_t(row) * 2 * width;
  T* d_gates = d_gate_up + uint64_t(row) * 2 * width;
  with_chunk(in_packs(width, gate_up, dy, y, d_gate_up), blockIdx.x * blockDim.x + threadIdx.x, width, [&](auto at) {
    ROLLED for (; at.first < width; at.first += gridDim.x * blockDim.x * at.SIZE) {
      auto gate = load(gates, at), up = load(gates + width, at), out = load(dy + uint64_t(row) * width, at);
      UNROLL for (int k = 0; k < at.SIZE; k++) {
        Activated a = activate(kind, to_float(gate.values[k]));
        float u = to_float(up.values[k]), slope = to_float(out.values[k]);
        out.values[k] = from_float<T>(a.value * u);
        gate.values[k] = from_float<T>(slope * u * a.slope);
        up.values[k] = from_float<T>(slope * a.value);
      }
      store(y + uint64_t(row) * width, at, out);
      store(d_gates, at, gate);
      store(d_gates + width, at, up);
    }
  });
}

KERNEL(activation_forward_f32, const float* gate_up, float* y, int n_rows, int width, int kind) { activation_forward(gate_up, y, n_rows, width, kind); }
KERNEL(activation_forward_bf16, const bf16* gate_up, bf16* y, int n_rows, int width, int kind) { activation_forward(gate_up, y, n_rows, width, kind); }
KERNEL(activation_backward_f32, const float* gate_up, const float* dy, float* y, float* d_gate_up, int n_rows, int width, int kind) {
  activation_backward(gate_up, dy, y, d_gate_up, n_rows, width, kind);
}
KERNEL(activation_backward_bf16, const bf16* gate_up, const bf16* dy, bf16* y, bf16* d_gate_up, int n_rows, int width, int kind) {
  activation_backward(gate_up, dy, y, d_gate_up, n_rows, width, kind);
}
