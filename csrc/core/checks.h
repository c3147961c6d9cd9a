// Errors, spans and checked arithmetic: everything that touches bytes from outside goes through
// these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace edge {

// Bytes from outside broke a rule. `rule` is stable and meant for programs, what() for people.
class RuleError : public std::runtime_error {
 public:
  RuleError(std::string rule, const std::string& message)
      : std::runtime_error(message), rule_(std::move(rule)) {}
  const std::string& rule() const { return rule_; }

 private:
  std::string rule_;
};

// A rule of docs/plan-format.md.
class PlanError : public RuleError {
  using RuleError::RuleError;
};

// A rule of a coded stream (csrc/algorithms/gaps.h, rans.h).
class StreamError : public RuleError {
  using RuleError::RuleError;
};

[[noreturn]] inline void refuse(const char* rule, const std::string& message) {
  throw PlanError(rule, message);
}

inline void require(bool holds, const char* rule, const std::string& message) {
  if (!holds) refuse(rule, message);
}

inline std::uint64_t checked_add(std::uint64_t a, std::uint64_t b, const char* rule) {
  std::uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) refuse(rule, "a size does not fit 64 bits");
  return sum;
}

inline std::uint64_t checked_mul(std::uint64_t a, std::uint64_t b, const char* rule) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) refuse(rule, "a size does not fit 64 bits");
  return product;
}

// A view of memory that somebody else owns. Plain indexing: callers check ranges once, up front.
template <class T>
class Span {
 public:
  Span() = default;
  Span(T* data, std::size_t size) : data_(data), size_(size) {}
  T* data() const { return data_; }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) const { return data_[i]; }
  T* begin() const { return data_; }
  T* end() const { return data_ + size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace edge
