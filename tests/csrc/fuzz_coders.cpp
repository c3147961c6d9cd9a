// One decoder of coded streams under libFuzzer: FUZZ_GAPS makes fuzz_gaps, otherwise it is
// fuzz_rans.
#include <cstdlib>

#include "coder_cases.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  if (bytes < 2) return 0;
  const coders::Bytes stream(data + 2, data + bytes);
#if defined(FUZZ_GAPS)
  // The first byte says how many places there are.
  constexpr edge::Index kPlaces[] = {0, 1, 300, 70000, 20000000, edge::kMaxPlaces};
  coders::gaps_survive(stream, kPlaces[data[0] % 6]);
#else
  // The first byte says the form, the second how many symbols.
  const edge::RansForm form = {data[0] % 2 == 0, 1 << (data[0] / 2 % 3)};
  coders::rans_survives(stream, std::size_t{data[1]} * 3, form);
#endif
  if (check::failures > 0) std::abort();
  return 0;
}
