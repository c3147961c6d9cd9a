// The passes over all elements that selection.cuh is made of.
#pragma once

#include "cuda/execution.h"

namespace edge::cuda::selection {

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kPasses = 3;
constexpr int kRows = 4;  // of a tile: loads of Four by every thread
constexpr int kThreads = 256;
constexpr u64 kBlocksPerProcessor = 4;
constexpr u32 kTile = kRows * kThreads * 4;
constexpr u32 kNone = 0xffffffffU;

// Where the digit of a pass starts within the 31 bits of a magnitude, and how many values it has.
EDGE_BOTH constexpr u32 digit_shift(int pass) { return pass == 0 ? 20 : pass == 1 ? 10 : 0; }
EDGE_BOTH constexpr u32 digit_bins(int pass) { return pass == 0 ? kBins : kBins / 2; }

// |x| as an integer of the same order; 16-bit formats at the top of the 31 bits, so that one code
// reads both and the low digit of theirs needs no pass.
EDGE_BOTH constexpr u32 magnitude(u32 bits) { return bits & 0x7fffffffU; }
EDGE_BOTH constexpr u32 magnitude(u16 bits) { return (bits & 0x7fffU) << 16U; }
template <class Bits>
EDGE_BOTH constexpr int passes() {
  return sizeof(Bits) == 2 ? 2 : kPasses;
}
// The first magnitude that is no number.
struct Infinity {
  u32 magnitude;
};
constexpr Infinity kFloat32{0x7f800000U};
constexpr Infinity kFloat16{0x7c000000U};
constexpr Infinity kBfloat16{0x7f800000U};

// What the launches tell each other. Zeroed at the start.
struct State {
  u32 threshold;   // bits of the k-th largest magnitude, as far as known; the rest are 0
  u32 need;        // how many of those whose known bits are `threshold` are taken
  u32 settled;     // all of them are: nothing is left to find out
  u32 candidates;  // elements kept by the gather; kNone: too many, the input is read again
  u32 finished[kPasses];
  u32 tickets[2];
};

// One tensor. With feedback x is its residual.
struct Tensor {
  void* x;                // only read without feedback
  const float* gradient;  // of feedback
  float* momentum;        // null: none
  u64 first;              // how many elements the tensors before it have
};

// How feedback is accumulated.
struct Law {
  float factor;
  bool nesterov;
  bool masked;  // clears momentum too: momentum factor masking
};

// Everything about one selection that its launches share.
template <class Bits>
struct Problem {
  Tensor only;            // of one
  const Tensor* tensors;  // of several, by ascending `first`
  u32 count;              // of tensors
  u64 n;                  // elements of all
  u32 k;
  u32 capacity;
  u32 infinity;
  State* state;
  u32* first_nan;
  u32* histograms;  // (kPasses, kBins)
  u64* tiles;       // (2, number of tiles): what decoupled look-back reads
  u32* candidate_indices;
  Bits* candidates;
};

template <class Bits>
EDGE_DEVICE const Tensor& tensor(const Problem<Bits>& it, u32 number) {
  return it.count == 1 ? it.only : it.tensors[number];
}

// The tensor that element `at` of all belongs to.
template <class Bits>
EDGE_DEVICE u32 tensor_of(const Problem<Bits>& it, u64 at) {
  u32 low = 0;
  u32 high = it.count;
  while (high - low > 1) {
    const u32 middle = low + (high - low) / 2;
    if (tensor(it, middle).first <= at) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class Bits>
EDGE_DEVICE u64 end_of(const Problem<Bits>& it, u32 number) {
  return number + 1 < it.count ? tensor(it, number + 1).first : it.n;
}

// Where the first pass has its elements from: memory as it is,
struct Plain {
  static constexpr bool kUpdates = false;
  // `size` elements of one tensor from `local` on.
  template <class Bits>
  EDGE_DEVICE void load(const Tensor& from, u64 local, u64 size, Bits (&out)[4]) const {
    const Bits* const x = static_cast<const Bits*>(from.x) + local;
    load_four(x, 0, size, aligned_for_four(x), out);
  }
};

// or the feedback it updates on the way.
struct Updated {
  static constexpr bool kUpdates = true;
  Law law;

  EDGE_DEVICE void load(const Tensor& from, u64 local, u64 size, u32 (&out)[4]) const {
    float* const residual = static_cast<float*>(from.x) + local;
    const float* const gradient = from.gradient + local;
    float g[4];
    float v[4];
    const int count = load_four(gradient, 0, size, aligned_for_four(gradient), g);
    load_four(residual, 0, size, aligned_for_four(residual), v);
    if (from.momentum != nullptr) {
      float* const momentum = from.momentum + local;
      float u[4];
      load_four(momentum, 0, size, aligned_for_four(momentum), u);
      for (int j = 0; j < count; ++j) {
        u[j] = law.nesterov ? law.factor * (u[j] + g[j]) : law.factor * u[j] + g[j];
        g[j] = law.nesterov ? u[j] + g[j] : u[j];
      }
      store_some(momentum, 0, count, aligned_for_four(momentum), u);
    }
    for (int j = 0; j < count; ++j) {
      v[j] += g[j];
      out[j] = bits_of(v[j]);
    }
    store_some(residual, 0, count, aligned_for_four(residual), v);
  }
};

// Up to four elements of all from `at` on, by `feed`; returns how many there are.
template <class Bits, class Feed>
EDGE_DEVICE int load_joined(const Problem<Bits>& it, const Feed& feed, u64 at, Bits (&out)[4]) {
  if (at >= it.n) return 0;
  const int count = it.n - at < 4 ? static_cast<int>(it.n - at) : 4;
  u32 number = tensor_of(it, at);
  const u64 local = at - tensor(it, number).first;
  if (at + static_cast<u64>(count) <= end_of(it, number)) {
    feed.load(tensor(it, number), local, static_cast<u64>(count), out);
    return count;
  }
  for (int j = 0; j < count; ++j) {
    const u64 place = at + static_cast<u64>(j);
    while (place >= end_of(it, number)) ++number;
    Bits one[4];
    feed.load(tensor(it, number), place - tensor(it, number).first, 1, one);
    out[j] = one[0];
  }
  return count;
}

// Counts a digit of every element whose higher digits are the threshold's; the last block to finish
// finds the bucket of rank k.
template <class Bits, class Feed, int kPass>
struct Count {
  static constexpr int kThreads = selection::kThreads;
  struct Args {
    Problem<Bits> it;
    Feed feed;
  };
  struct Shared {
    u32 bins[kBins];
    u32 warps[kThreads / 32];
    u32 flag;
  };
  static constexpr u32 kShift = digit_shift(kPass);
  static constexpr u32 kDigits = digit_bins(kPass);

  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    const Problem<Bits>& it = args.it;
    if (kPass > 0 && it.state->settled != 0) return;
    block.each([&](int thread) {
      for (u32 bin = static_cast<u32>(thread); bin < kDigits; bin += kThreads) shared.bins[bin] = 0;
    });
    const bool gathered = kPass > 0 && it.state->candidates != kNone;
    const u64 n = gathered ? it.state->candidates : it.n;
    const u32 threshold = kPass > 0 ? it.state->threshold : 0;
    const u64 step = static_cast<u64>(block.blocks()) * kThreads * 4;
    block.each([&](int thread) {
      const u64 first = (static_cast<u64>(block.index()) * kThreads + static_cast<u64>(thread)) * 4;
      for (u64 at = first; at < n; at += step) {
        Bits bits[4];
        const int count = gathered ? load_four(it.candidates, at, n, true, bits)
                                   : load_joined(it, args.feed, at, bits);
        for (int j = 0; j < count; ++j) {
          const u32 key = magnitude(bits[j]);
          if (kPass == 0 && key > it.infinity)
            block.min(it.first_nan, static_cast<u32>(at) + static_cast<u32>(j));
          if (kPass == 0 || (key ^ threshold) >> (kShift + 10) == 0) {
            block.add(&shared.bins[(key >> kShift) & (kDigits - 1)], 1U);
          }
        }
      }
    });
    u32* const bins = it.histograms + kPass * kBins;
    block.each([&](int thread) {
      for (u32 bin = static_cast<u32>(thread); bin < kDigits; bin += kThreads) {
        if (shared.bins[bin] != 0) block.add(&bins[bin], shared.bins[bin]);
      }
    });
    if (block.last(&it.state->finished[kPass], &shared.flag)) choose(block, shared, it, bins);
  }

  // Each thread has a run of bins, the first thread those of the largest digits.
  template <class Block>
  EDGE_DEVICE static void choose(Block& block, Shared& shared, const Problem<Bits>& it,
                                 const u32* bins) {
    constexpr u32 kRun = kDigits / kThreads;
    const u32 rank = kPass == 0 ? it.k : it.state->need;
    typename Block::template Private<u32> above;
    typename Block::template Private<u32> own;
    block.each([&](int thread) {
      const u32 top = kDigits - 1 - static_cast<u32>(thread) * kRun;
      u32 sum = 0;
      for (u32 j = 0; j < kRun; ++j) sum += block.fresh(&bins[top - j]);
      above[thread] = own[thread] = sum;
    });
    block.exclusive_sum(above, shared.warps);
    block.each([&](int thread) {
      u32 before = above[thread];
      if (before >= rank || before + own[thread] < rank) return;
      u32 digit = kDigits - 1 - static_cast<u32>(thread) * kRun;
      while (before + block.fresh(&bins[digit]) < rank) before += block.fresh(&bins[digit--]);
      State& state = *it.state;
      const u32 inside = block.fresh(&bins[digit]);
      state.threshold |= digit << kShift;
      state.need = rank - before;
      state.settled = inside == rank - before ? 1U : 0U;
      if (kPass == 0) state.candidates = before + inside <= it.capacity ? before + inside : kNone;
    });
  }
};

// Copies what reaches the threshold, in order. kGather: everything of the bucket of rank k and
// above, into the candidates. Otherwise exactly the k results, from the candidates or, without
// them, from x.
template <class Bits, bool kGather>
struct Compact {
  static constexpr int kThreads = selection::kThreads;
  struct Args {
    Problem<Bits> it;
    u32* indices;
    Bits* values;
    bool cleared;  // feedback is set to 0 at what was taken
    bool masked;   // momentum too
    u32 room;      // results beyond it are counted, not written
    u32* count;    // not null: receives how many there are, and NaN is looked for
  };
  struct Shared {
    u64 warps[kThreads / 32];
    u64 before;
    u64 seen[32];
    u32 tile;
    u32 reached;
  };
  // A tile's word: nothing yet, its own counts, or the counts of it and all before it. 31 bits of
  // how many lie above, 31 of how many equal the threshold.
  static constexpr u64 kOwn = u64{1} << 62U;
  static constexpr u64 kWhole = u64{2} << 62U;
  static constexpr u64 kCounts = kOwn - 1;

  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    const Problem<Bits>& it = args.it;
    const bool gathered = it.state->candidates != kNone;
    if (kGather && !gathered) return;
    const bool from_candidates = !kGather && gathered;
    const u64 n = from_candidates ? it.state->candidates : it.n;
    const u32 threshold = it.state->threshold;
    const u32 need = it.state->need;
    const bool ties = !kGather && it.state->settled == 0;
    const bool clear = *it.first_nan == kNone;
    const u32 lowest = ties ? threshold + 1 : threshold;
    const u32 tiles = static_cast<u32>(ceil_div(n, kTile));
    u64* const words = it.tiles + (kGather ? 0 : ceil_div(it.n, kTile));
    for (;;) {
      block.each([&](int thread) {
        if (thread == 0) shared.tile = block.add(&it.state->tickets[kGather ? 0 : 1], 1U);
      });
      const u32 tile = block.uniform(shared.tile);
      if (tile >= tiles) return;
      typename Block::template Private<Bits[kRows][4]> elements;
      typename Block::template Private<u64> above;
      typename Block::template Private<u64> equal;
      block.each([&](int thread) {
        above[thread] = equal[thread] = 0;
        for (int row = 0; row < kRows; ++row) {
          Bits(&four)[4] = elements[thread][row];
          const u64 at = place(tile, row, thread);
          const int count = from_candidates ? load_four(it.candidates, at, n, true, four)
                                            : load_joined(it, Plain{}, at, four);
          for (int j = 0; j < 4; ++j) {
            if (j >= count) elements[thread][row][j] = 0;
            const u32 key = magnitude(elements[thread][row][j]);
            const bool inside = j < count;
            if (args.count != nullptr && inside && key > it.infinity) {
              block.min(it.first_nan, static_cast<u32>(at) + static_cast<u32>(j));
            }
            if (inside && key >= lowest) above[thread] += u64{1} << (16 * row);
            if (inside && ties && key == threshold) equal[thread] += u64{1} << (16 * row);
          }
        }
      });
      const u64 all_above = block.exclusive_sum(above, shared.warps);
      const u64 all_equal = block.exclusive_sum(equal, shared.warps);
      const u64 before = look_back(block, shared, words, tile,
                                   sum_of_rows(all_above) << 31U | sum_of_rows(all_equal));
      block.each([&](int thread) {
        u32 row_above = static_cast<u32>(before >> 31U) & 0x7fffffffU;
        if (thread == 0 && tile == tiles - 1 && args.count != nullptr) {
          *args.count = row_above + static_cast<u32>(sum_of_rows(all_above));
        }
        u32 row_equal = static_cast<u32>(before) & 0x7fffffffU;
        for (int row = 0; row < kRows; ++row) {
          u32 higher = row_above + field(above[thread], row);
          u32 same = row_equal + field(equal[thread], row);
          const u64 at = place(tile, row, thread);
          for (int j = 0; j < 4; ++j) {
            const u64 place_of_it = at + static_cast<u64>(j);
            if (place_of_it >= n) break;
            const Bits bits = elements[thread][row][j];
            const u32 key = magnitude(bits);
            const bool tie = ties && key == threshold;
            if (key >= lowest || (tie && same < need)) {
              const u32 index = from_candidates ? it.candidate_indices[place_of_it]
                                                : static_cast<u32>(place_of_it);
              take(args, higher + (same < need ? same : need), index, bits, clear);
            }
            higher += key >= lowest ? 1U : 0U;
            same += tie ? 1U : 0U;
          }
          row_above += field(all_above, row);
          row_equal += field(all_equal, row);
        }
      });
    }
  }

  EDGE_DEVICE static u64 place(u32 tile, int row, int thread) {
    return static_cast<u64>(tile) * kTile +
           (static_cast<u64>(row) * kThreads + static_cast<u64>(thread)) * 4;
  }
  EDGE_DEVICE static u32 field(u64 rows, int row) {
    return static_cast<u32>(rows >> (16 * row)) & 0xffffU;
  }
  EDGE_DEVICE static u64 sum_of_rows(u64 rows) {
    u64 sum = 0;
    for (int row = 0; row < kRows; ++row) sum += field(rows, row);
    return sum;
  }

  EDGE_DEVICE static void take(const Args& args, u32 slot, u32 index, Bits bits, bool clear) {
    if (kGather) {
      args.it.candidate_indices[slot] = index;
      args.it.candidates[slot] = bits;
      return;
    }
    if (slot >= args.room) return;
    args.indices[slot] = index;
    args.values[slot] = bits;
    if (!clear || !args.cleared) return;
    const Tensor& from = tensor(args.it, tensor_of(args.it, index));
    static_cast<float*>(from.x)[index - from.first] = 0.0F;
    if (args.masked && from.momentum != nullptr) from.momentum[index - from.first] = 0.0F;
  }

  // The counts of all tiles before this one. Tiles are handed out in order to blocks that run, so
  // the words waited for do come.
  template <class Block>
  EDGE_DEVICE static u64 look_back(Block& block, Shared& shared, u64* words, u32 tile, u64 own) {
    block.each([&](int thread) {
      if (thread != 0) return;
      shared.before = 0;
      shared.reached = 0;
      block.publish(&words[tile], tile == 0 ? kWhole | own : kOwn | own);
    });
    for (u32 next = tile; next > 0;) {
      const u32 window = next < 32 ? next : 32;
      block.each([&](int thread) {
        const u32 back = static_cast<u32>(thread);
        if (back < window) shared.seen[back] = block.awaited(&words[next - 1 - back]);
      });
      block.each([&](int thread) {
        for (u32 back = 0; thread == 0 && back < window && shared.reached == 0; ++back) {
          shared.before += shared.seen[back] & kCounts;
          shared.reached = (shared.seen[back] & kWhole) != 0 ? 1U : 0U;
        }
      });
      if (block.uniform(shared.reached) != 0) break;
      next -= window;
    }
    const u64 before = block.uniform(shared.before);
    block.each([&](int thread) {
      if (thread == 0 && tile > 0) block.publish(&words[tile], kWhole | (before + own));
    });
    return before;
  }
};

}  // namespace edge::cuda::selection
