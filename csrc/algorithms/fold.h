// Many updates into one: weighted sums by tensor, straight from the form in which the values came.
//
// The sums are whole numbers (csrc/kernels/fold.h), so they are the same bits in whatever order
// updates are added, by any number of threads. Memory: 16 bytes a value, 24 once a term of 2^27 or
// more was added, and 16 KiB on the stack of each thread, however many updates there are.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/checks.h"
#include "core/workspace.h"

namespace edge {

enum class Coding : std::int32_t { float32, float16, bfloat16, int8 };

// Values of an update, views of memory that somebody else owns. The tensors of an update lie one
// behind the other; a place counts through all of them.
struct CodedPiece {
  Coding coding = Coding::float32;
  const void* values = nullptr;          // (count,)
  const std::int32_t* places = nullptr;  // (count,), or null: begin, begin + 1, ...
  const float* scales = nullptr;         // int8: (ceil(count / block),)
  Index block = 1;
  Index begin = 0;
  Index count = 0;
};

// An update whose places are in range and ascend, and whose values have been looked at.
class CodedUpdate {
 public:
  // Throws StreamError(OutOfRange | NotAscending) for places that are not within `total` places.
  CodedUpdate(Workspace& workspace, std::vector<CodedPiece> pieces, Index total);

  const std::vector<CodedPiece>& pieces() const { return pieces_; }
  Index total() const { return total_; }
  float peak() const { return peak_; }            // largest magnitude, if all are finite
  Index first_bad() const { return first_bad_; }  // place of a value that is not finite, or -1

 private:
  std::vector<CodedPiece> pieces_;
  Index total_;
  float peak_ = 0;
  Index first_bad_ = -1;
};

class Accumulator {
 public:
  static constexpr Index kMaxTerms = Index{1} << 17;

  // Sums of zero for tensors of these sizes. Throws std::invalid_argument for a negative size or
  // more values than memory can hold, std::bad_alloc where it does not.
  explicit Accumulator(const std::vector<Index>& sizes);

  // Adds weights[i] * tensor i of the update, whose tensors have the sizes of the sums, or throws
  // std::invalid_argument and changes nothing: another size or number of weights, weights or values
  // that are not finite or whose product reaches 2^72, more than kMaxTerms.
  void add(Workspace& workspace, const CodedUpdate& update, Span<const double> weights);

  // Writes the sums of one tensor, each within 2^-52 of its magnitude.
  void sums(Index tensor, Span<double> out) const;

  Index tensors() const { return static_cast<Index>(ends_.size()); }
  Index start(Index tensor) const {
    return tensor == 0 ? 0 : ends_[static_cast<std::size_t>(tensor) - 1];
  }
  Index size(Index tensor) const { return ends_[static_cast<std::size_t>(tensor)] - start(tensor); }
  Index total() const { return ends_.empty() ? 0 : ends_.back(); }
  Index terms() const { return terms_; }
  std::uint64_t bytes() const;

 private:
  void check(const CodedUpdate& update, Span<const double> weights) const;

  struct Free {
    void operator()(void* pointer) const;
  };
  using Sums = std::unique_ptr<std::int64_t[], Free>;
  static Sums zeros(Index count);

  std::vector<Index> ends_;  // of every tensor among all values
  Sums huge_, coarse_, fine_;
  Index terms_ = 0;
};

}  // namespace edge
