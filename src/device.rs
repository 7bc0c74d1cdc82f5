//! The one place that knows CPU, CUDA and the precision policy.
