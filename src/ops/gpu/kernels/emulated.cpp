// All kernels, for the emulated GPU.
#include "kernels.cu"

extern "C" int mpo_emulate(const char* name, const unsigned* blocks, unsigned threads, unsigned shared, void** arguments) {
  return emulator::launch(name, blocks, threads, shared, arguments);
}
