// All kernels, as one translation unit.
#include "gpu.cuh"

#include "elementwise.cuh"
#include "rms_norm.cuh"
#include "rope.cuh"
#include "activation.cuh"
#include "rows.cuh"
#include "log_prob.cuh"
#include "attention.cuh"
#include "attention_forward.cuh"
#include "attention_backward.cuh"
#include "attention_any.cuh"
#include "attention_next.cuh"
