// All kernels, for the emulated GPU.
#include "kernels.cu"

// Lets the threads of the launches that follow take their turns the other way round.
extern "C" void mpo_turn_round() { emulator::block().backwards = !emulator::block().backwards; }

extern "C" int mpo_emulate(const char* name, const unsigned* blocks, unsigned threads, unsigned shared, void** arguments) {
  return emulator::launch(name, blocks, threads, shared, arguments);
}
