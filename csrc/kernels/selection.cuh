// The k largest magnitudes, on a device.
//
//   indices: ascending, of the k elements largest by |x|; of equal magnitudes the lower index is
//   taken values:  x there, bit for bit
// x (n,) float32, or float16 / bfloat16 as 16-bit words; 1 <= k <= n <= 2^31 - 1; any alignment of
// elements. -0 and +0 are equal, subnormals and infinities count as what they are, NaN counts as
// larger than infinity, and `first_nan` receives the first one's index (2^32 - 1 for none). With
// feedback, x is an array in memory that is updated first:
//   residual r:      r += g;                    sent entries of r are set to 0
//   momentum u, v:   u = m u + g;  v += u;      sent entries of u and v are set to 0
//   nesterov u, v:   u = m (u + g);  v += u + g;  the same
// (u only with `masked`). Nothing is set to 0 where an element is NaN.
// No multiply-add is fused, so that all of it is bit for bit what the processor's kernels give.
//
// Radix select from the high bits (Alabi et al., 2012; the one-launch-a-digit form and the
// candidates of RAFT's select_radix), 11 + 10 + 10 bits of the magnitude, then one ordered
// compaction with decoupled look-back (Merrill and Garland, 2016), so that every result is exact
// and the same in every run. Bytes moved: x read twice (and the updates of feedback once), while at
// most `candidates` elements reach the bucket of rank k; otherwise x is read up to four times.
// Workspace: (4 + sizeof(x)) max(2^16, min(4k, n / 8)) + n / 256 + 25 kB bytes, never more. Nothing
// is allocated and nothing waits for the host.
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

struct Feedback {
  const float* gradient;
  float* residual;  // what is selected from
  float* momentum;  // null: no momentum
  float factor;
  bool nesterov;
  bool masked;  // clears momentum too: momentum factor masking
};

// Everything about one selection that its launches share.
template <class Bits>
struct Problem {
  const Bits* x;
  u64 n;
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

// Where the first pass has its elements from: memory as it is,
struct Plain {
  template <class Bits>
  EDGE_DEVICE int load(const Problem<Bits>& it, u64 at, Bits (&out)[4]) const {
    return load_four(it.x, at, it.n, aligned_for_four(it.x), out);
  }
};

// or the feedback it updates on the way.
struct Updated {
  Feedback feedback;

  EDGE_DEVICE int load(const Problem<u32>& it, u64 at, u32 (&out)[4]) const {
    const Feedback& f = feedback;
    float gradient[4];
    float residual[4];
    const bool whole = aligned_for_four(f.residual);
    const int count = load_four(f.gradient, at, it.n, aligned_for_four(f.gradient), gradient);
    load_four(f.residual, at, it.n, whole, residual);
    if (f.momentum != nullptr) {
      float momentum[4];
      const bool whole_momentum = aligned_for_four(f.momentum);
      load_four(f.momentum, at, it.n, whole_momentum, momentum);
      for (int j = 0; j < count; ++j) {
        if (f.nesterov) {
          momentum[j] = f.factor * (momentum[j] + gradient[j]);
          gradient[j] = momentum[j] + gradient[j];
        } else {
          momentum[j] = f.factor * momentum[j] + gradient[j];
          gradient[j] = momentum[j];
        }
      }
      store_some(f.momentum, at, count, whole_momentum, momentum);
    }
    for (int j = 0; j < count; ++j) {
      residual[j] += gradient[j];
      out[j] = bits_of(residual[j]);
    }
    store_some(f.residual, at, count, whole, residual);
    return count;
  }
};

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
        const int count = kPass == 0 ? args.feed.load(it, at, bits)
                          : gathered ? load_four(it.candidates, at, n, true, bits)
                                     : load_four(it.x, at, n, aligned_for_four(it.x), bits);
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
    float* sent[2];  // where not null: set to 0 at what was taken
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

  struct Rows {
    u64 at[2];  // four 16-bit counts, one a row of the tile: above, equal
  };

  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    const Problem<Bits>& it = args.it;
    const bool gathered = it.state->candidates != kNone;
    if (kGather && !gathered) return;
    const bool from_candidates = !kGather && gathered;
    const u64 n = from_candidates ? it.state->candidates : it.n;
    const Bits* const x = from_candidates ? it.candidates : it.x;
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
          const int count =
              load_four(x, place(tile, row, thread), n, aligned_for_four(x), elements[thread][row]);
          for (int j = 0; j < 4; ++j) {
            if (j >= count) elements[thread][row][j] = 0;
            const u32 key = magnitude(elements[thread][row][j]);
            const bool inside = j < count;
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
    args.indices[slot] = index;
    args.values[slot] = bits;
    for (float* sent : args.sent) {
      if (clear && sent != nullptr) sent[index] = 0.0F;
    }
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

inline u64 capacity_of(u64 n, u64 k) {
  const u64 wanted = 4 * k < n / 8 ? 4 * k : n / 8;
  const u64 least = wanted > 65536 ? wanted : 65536;
  return least < n ? least : n;
}

template <class Bits>
u64 carve(void* workspace, Problem<Bits>& it) {
  Carve parts(workspace);
  it.state = parts.take<State>(1);
  it.histograms = parts.take<u32>(kPasses * kBins);
  it.tiles = parts.take<u64>(2 * ceil_div(it.n, kTile));
  it.candidate_indices = parts.take<u32>(it.capacity);
  it.candidates = parts.take<Bits>(it.capacity);
  return parts.bytes();
}

template <class Bits>
u64 workspace_bytes(u64 n, u64 k) {
  Problem<Bits> it{};
  it.n = n;
  it.capacity = static_cast<u32>(capacity_of(n, k));
  return carve<Bits>(nullptr, it);
}

template <class Bits>
struct Result {
  u32* indices;
  Bits* values;
  u32* first_nan;
};

// `x` is what is selected from: with feedback, its residual.
template <class Bits, class Feed, class Launcher>
void select(Launcher& launcher, const Bits* x, u64 n, u32 k, Infinity infinity, const Feed& feed,
            const Result<Bits>& result, float* sent_a, float* sent_b, void* workspace) {
  Problem<Bits> it{};
  it.x = x;
  it.n = n;
  it.k = k;
  it.infinity = infinity.magnitude;
  it.first_nan = result.first_nan;
  it.capacity = static_cast<u32>(capacity_of(n, k));
  carve(workspace, it);
  // State, histograms and words of tiles lie in front and together.
  launcher.fill(it.first_nan, 0xFF, sizeof(u32));
  launcher.fill(it.state, 0,
                static_cast<u64>(reinterpret_cast<unsigned char*>(it.candidate_indices) -
                                 reinterpret_cast<unsigned char*>(it.state)));
  const u64 tiles = ceil_div(n, kTile);
  const u64 most = launcher.processors() * kBlocksPerProcessor;
  const u64 blocks = tiles < most ? tiles : most;
  launcher.template launch<Count<Bits, Feed, 0>>(blocks, {it, feed});
  launcher.template launch<Compact<Bits, true>>(blocks, {it, nullptr, nullptr, {nullptr, nullptr}});
  launcher.template launch<Count<Bits, Plain, 1>>(blocks, {it, {}});
  if (passes<Bits>() == 3) launcher.template launch<Count<Bits, Plain, 2>>(blocks, {it, {}});
  launcher.template launch<Compact<Bits, false>>(
      blocks, {it, result.indices, result.values, {sent_a, sent_b}});
}

template <class Bits, class Launcher>
void top_k(Launcher& launcher, const Bits* x, u64 n, u32 k, Infinity infinity,
           const Result<Bits>& result, void* workspace) {
  select(launcher, x, n, k, infinity, Plain{}, result, nullptr, nullptr, workspace);
}

// `values` receives floats.
template <class Launcher>
void top_k_feedback(Launcher& launcher, const Feedback& feedback, u64 n, u32 k,
                    const Result<u32>& result, void* workspace) {
  select(launcher, reinterpret_cast<const u32*>(feedback.residual), n, k, kFloat32,
         Updated{feedback}, result, feedback.residual,
         feedback.masked ? feedback.momentum : nullptr, workspace);
}

}  // namespace edge::cuda::selection
