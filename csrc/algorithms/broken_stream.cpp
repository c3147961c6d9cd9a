#include "algorithms/broken_stream.h"

#include "core/checks.h"

namespace edge {

void broken_stream(const char* rule, const char* what, std::int64_t number) {
  throw StreamError(rule, number < 0 ? what : what + std::to_string(number));
}

}  // namespace edge
