// CHECK(condition): prints the place of what does not hold; main() returns finish().
#pragma once

#include <cstdio>

namespace check {

inline int failures = 0;
inline int checks = 0;

inline void that(bool holds, const char* condition, const char* file, int line) {
  ++checks;
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, condition);
}

inline int finish() {
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
