// The reader and a step under libFuzzer: coverage decides which broken plans are broken further.
//
// fuzz_bytes CORPUS -max_total_time=600; `make fuzz` builds it with Clang, the sanitizers, and a
// corpus of the compiler's own plans.
#include <algorithm>
#include <cstdlib>

#include "survive.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t bytes, std::size_t most);

// Bytes that move leave nothing where the header says it is: three of four changes keep the length
// and hit whole words, the fourth is libFuzzer's, with the length in the header made right.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t bytes,
                                               std::size_t most, unsigned seed) {
  constexpr std::size_t kHeaderBytes = 64, kFileBytesAt = 56;
  fuzz::Random random(seed);
  if (bytes >= kHeaderBytes && !random.once_in(4)) {
    const fuzz::Bytes broken = fuzz::changed({data, data + bytes}, random);
    std::copy(broken.begin(), broken.end(), data);
    return bytes;
  }
  bytes = LLVMFuzzerMutate(data, bytes, most);
  const std::uint64_t file_bytes = bytes;
  if (bytes >= kHeaderBytes) std::memcpy(data + kFileBytesAt, &file_bytes, sizeof file_bytes);
  return bytes;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  fuzz::survives({data, data + bytes}, bytes, false);
  if (check::failures > 0) std::abort();
  return 0;
}
