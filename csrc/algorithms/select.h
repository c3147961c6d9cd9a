// Selection by magnitude over one tensor or many, as if they were joined: the k largest |x| (ties
// to the lower index), or all that reach a threshold, by ascending index.
//
// How the k-th largest is found, by size:
//   up to 16,384 elements  bisection of its 31 bits: every step counts
//   more, k up to n / 4    a sample brackets it; one pass picks what is above the lower end, and
//                          all else happens among the picked
//   otherwise              radix selection: three passes of histograms, then one that emits. This
//                          is also what follows when the sample misled: heavy ties, or bad luck
//
// Bytes moved beyond the first pass over every operand: O(k), except for radix selection (four more
// passes over x, or the accumulated residual). Extra memory: O(k + n / sample), see sample_of and
// room_of in select.cpp, held by the workspace.
#pragma once

#include <vector>

#include "core/workspace.h"

namespace edge {

struct SelectTensor {
  const void* x = nullptr;
  float* residual = nullptr;  // where the kind accumulates
  float* momentum = nullptr;  // dgc and nesterov
  Index count = 0;
};

struct SelectProblem {
  SelectKind kind = SelectKind::float32;
  std::vector<SelectTensor> tensors;
  float factor = 0.0F;                   // m of dgc and nesterov
  bool clear_momentum = true;            // factor masking
  std::uint32_t infinity = 0x7F800000U;  // the key of it: what is above is NaN
};

// What the sampled threshold accepts; see kernels/selection.py.
struct SampledLaw {
  std::uint64_t seed = 0;
  Index sample = 0;
  Index least = 0, most = 0;  // accepted counts
  Index attempts = 0;
};

// One selection: first one of top_k, above and sampled, which read and accumulate; then emit.
class Selection {
 public:
  // The tensors hold at most 2^31 - 1 elements together.
  Selection(Workspace& workspace, SelectProblem problem);

  void top_k(Index k);  // 1 <= k <= total
  void above(std::uint32_t threshold);
  void sampled(Index k, const SampledLaw& law);

  Index count() const { return count_; }
  std::uint32_t threshold() const { return threshold_; }  // the least key that is selected

  // Writes count() indices and values (16 bits each for bits16), and zeroes what was accumulated
  // there. False where an element is NaN: then nothing is zeroed, and the outputs mean nothing.
  bool emit(std::int32_t* index, void* values);

 private:
  // What a worker picked or will emit.
  struct Part {
    SelectOut picked;
    Index first = 0, last = 0;  // its elements of the joined tensors
    Index band = 0, above = 0;  // picked between the sample's bounds, and at or above the upper
    std::uint32_t* band_bits = nullptr;
    Index greater = 0, equal = 0;  // than the k-th largest
  };

  struct Keys {
    const std::uint32_t* at;
    Index count;
  };
  // Keys, the upper one past what it bounds.
  struct Bounds {
    std::uint32_t low, high;
  };

  template <class Work>
  void each(const Work& work);
  template <class Work>
  void each_run(Index first, Index last, const Work& work) const;
  template <class Count>
  void rank(const Count& count, Index k, std::uint32_t low, std::uint32_t high);

  void accumulate();
  void sample(std::uint32_t start, Index size);
  Index reach_of(Keys keys, std::uint32_t threshold) const;
  std::uint32_t key_of(Keys keys, Index rank, std::uint32_t low, std::uint32_t high) const;
  Bounds sampled_keys(Index lower, Index upper) const;
  bool pick(Index rank, std::uint32_t low);
  void rank_picked(Index k, std::uint32_t low, std::uint32_t high);
  bool bracketed(Index k);
  bool tied(Index k, std::uint32_t key);
  void whole();
  void bisected(Index k);
  void radix(Index k);
  Index radix_step(Index k, std::int32_t shift, std::int32_t bits);
  Index counted(Index first, Index last, std::uint32_t threshold) const;
  void clear(const std::int32_t* index, Index count) const;

  Workspace& workspace_;
  SelectProblem problem_;
  std::vector<Index> offsets_;  // of the tensors, then the total
  std::vector<Part> parts_;     // one a worker
  Index sample_ = 0;
  bool accumulated_;
  bool from_picked_ = false;
  Index count_ = 0;
  std::uint32_t threshold_ = 0;
};

}  // namespace edge
