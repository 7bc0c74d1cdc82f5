// All kernels, as one translation unit.
#include "gpu.cuh"

#include "elementwise.cuh"
#include "rms_norm.cuh"
#include "rope.cuh"
#include "activation.cuh"
#include "rows.cuh"
#include "dropout.cuh"
#include "log_prob.cuh"
