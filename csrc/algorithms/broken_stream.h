// Every StreamError of the coders: out of line and built for size, so that their loops stay small.
#pragma once

#include <cstdint>

namespace edge {

// Throws StreamError(rule, what), followed by `number` unless that is negative.
[[noreturn]] void broken_stream(const char* rule, const char* what, std::int64_t number = -1);

}  // namespace edge
