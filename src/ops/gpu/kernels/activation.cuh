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
    float t = tanhf(c * (x + k * x * x * x));
    return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * c * (1.0f + 3.0f * k * x * x)};
  }
  float phi = 0.5f * (1.0f + erff(x * 0.7071067811865476f));  // x Phi(x)
  return {x * phi, phi + x * 0.3989422804014327f * expf(-0.5f * x * x)};
}

// Blocks: x over packs of a row, y and z over rows (row = z * gridDim.y + y). `width` is F.
template <class T> DEVICE void activation_forward(const T* gate_up, T* y, int n_rows, int width, int kind) {
  constexpr int SIZE = Pack<T>::SIZE;
  int row = blockIdx.z * gridDim.y + blockIdx.y, i = (blockIdx.x * blockDim.x + threadIdx.x) * SIZE;
  if (row >= n_rows || i >= width) return;
  const T* gate = gate_up + uint64_t(row) * 2 * width + i;
  T* out = y + uint64_t(row) * width + i;
  if (width % SIZE == 0) {
    Pack<T> g = *(const Pack<T>*)gate, u = *(const Pack<T>*)(gate + width), o;
    for (int k = 0; k < SIZE; k++) o.values[k] = from_float<T>(activate(kind, to_float(g.values[k])).value * to_float(u.values[k]));
    *(Pack<T>*)out = o;
  } else {
    for (int k = 0; k < SIZE && i + k < width; k++) out[k] = from_float<T>(activate(kind, to_float(gate[k])).value * to_float(gate[width + k]));
  }
}

template <class T> DEVICE void activation_backward(const T* gate_up, const T* dy, T* y, T* d_gate_up, int n_rows, int width, int kind) {
  constexpr int SIZE = Pack<T>::SIZE;
  int row = blockIdx.z * gridDim.y + blockIdx.y, i = (blockIdx.x * blockDim.x + threadIdx.x) * SIZE;
  if (row >= n_rows || i >= width) return;
  uint64_t at = uint64_t(row) * width + i, at_pair = uint64_t(row) * 2 * width + i;
  Pack<T> g, u, d, out, d_gate, d_up;
  bool whole = width % SIZE == 0;
  if (whole) {
    g = *(const Pack<T>*)(gate_up + at_pair);
    u = *(const Pack<T>*)(gate_up + at_pair + width);
    d = *(const Pack<T>*)(dy + at);
  } else {
    for (int k = 0; k < SIZE && i + k < width; k++) {
      g.values[k] = gate_up[at_pair + k];
      u.values[k] = gate_up[at_pair + width + k];
      d.values[k] = dy[at + k];
    }
  }
  for (int k = 0; k < SIZE && i + k < width; k++) {
    float gate = to_float(g.values[k]), up = to_float(u.values[k]), slope = to_float(d.values[k]);
    Activated a = activate(kind, gate);
    out.values[k] = from_float<T>(a.value * up);
    d_gate.values[k] = from_float<T>(slope * up * a.slope);
    d_up.values[k] = from_float<T>(slope * a.value);
  }
  if (whole) {
    *(Pack<T>*)(y + at) = out;
    *(Pack<T>*)(d_gate_up + at_pair) = d_gate;
    *(Pack<T>*)(d_gate_up + at_pair + width) = d_up;
  } else {
    for (int k = 0; k < SIZE && i + k < width; k++) {
      y[at + k] = out.values[k];
      d_gate_up[at_pair + k] = d_gate.values[k];
      d_gate_up[at_pair + width + k] = d_up.values[k];
    }
  }
}

KERNEL(activation_forward_f32, const float* gate_up, float* y, int n_rows, int width, int kind) { activation_forward(gate_up, y, n_rows, width, kind); }
KERNEL(activation_forward_bf16, const bf16* gate_up, bf16* y, int n_rows, int width, int kind) { activation_forward(gate_up, y, n_rows, width, kind); }
KERNEL(activation_backward_f32, const float* gate_up, const float* dy, float* y, float* d_gate_up, int n_rows, int width, int kind) {
  activation_backward(gate_up, dy, y, d_gate_up, n_rows, width, kind);
}
KERNEL(activation_backward_bf16, const bf16* gate_up, const bf16* dy, bf16* y, bf16* d_gate_up, int n_rows, int width, int kind) {
  activation_backward(gate_up, dy, y, d_gate_up, n_rows, width, kind);
}
