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
// x may be several tensors, joined in order without being copied: k is then global, an index is
// that within its tensor, and starts[t] is where those of tensor t begin among the results.
//
// Radix select from the high bits (Alabi et al., 2012; the one-launch-a-digit form and the
// candidates of RAFT's select_radix), 11 + 10 + 10 bits of the magnitude, then one ordered
// compaction with decoupled look-back (Merrill and Garland, 2016), so that every result is exact
// and the same in every run. Bytes moved: x read twice (and the updates of feedback once), while at
// most `candidates` elements reach the bucket of rank k; otherwise x is read up to four times.
// Workspace: (4 + sizeof(x)) max(2^16, min(4k, n / 8)) + n / 256 + 25 kB bytes, never more. Nothing
// is allocated and nothing waits for the host.
#pragma once

#include "kernels/selection_passes.cuh"

namespace edge::cuda::selection {

inline u64 capacity_of(u64 n, u64 k) {
  const u64 wanted = 4 * k < n / 8 ? 4 * k : n / 8;
  const u64 least = wanted > 65536 ? wanted : 65536;
  return least < n ? least : n;
}

constexpr u32 kDeposited = 64;

// Writes descriptions of tensors, which come as arguments, to device memory.
struct Deposit {
  static constexpr int kThreads = static_cast<int>(kDeposited);
  struct Args {
    Tensor tensors[kDeposited];
    Tensor* to;
    u32 count;
  };
  struct Shared {
    u32 unused;
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared&, const Args& args) {
    block.each([&](int thread) {
      if (static_cast<u32>(thread) < args.count) args.to[thread] = args.tensors[thread];
    });
  }
};

// From indices of all to where each tensor's begin, and then to those within the tensors.
template <class Bits, bool kStarts>
struct Split {
  static constexpr int kThreads = selection::kThreads;
  struct Args {
    Problem<Bits> it;
    u32* indices;  // (k)
    u32* starts;   // (count + 1)
  };
  struct Shared {
    u32 unused;
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared&, const Args& args) {
    const Problem<Bits>& it = args.it;
    const u64 place = static_cast<u64>(block.index()) * kThreads;
    block.each([&](int thread) {
      const u64 at = place + static_cast<u64>(thread);
      if (kStarts) {
        if (at <= it.count)
          args.starts[at] =
              first_from(args, at < it.count ? tensor(it, static_cast<u32>(at)).first : it.n);
      } else if (at < it.k) {
        const u32 index = args.indices[at];
        args.indices[at] = index - static_cast<u32>(tensor(it, tensor_of(it, index)).first);
      }
    });
  }
  // How many indices are below `bound`.
  EDGE_DEVICE static u32 first_from(const Args& args, u64 bound) {
    u32 low = 0;
    u32 high = args.it.k;
    while (low < high) {
      const u32 middle = low + (high - low) / 2;
      if (args.indices[middle] < bound) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// `tensors` receives where their descriptions go, where there are several.
template <class Bits>
u64 carve(void* workspace, Problem<Bits>& it, Tensor*& tensors) {
  Carve parts(workspace);
  it.state = parts.take<State>(1);
  it.histograms = parts.take<u32>(kPasses * kBins);
  it.tiles = parts.take<u64>(2 * ceil_div(it.n, kTile));
  it.candidate_indices = parts.take<u32>(it.capacity);
  it.candidates = parts.take<Bits>(it.capacity);
  tensors = parts.take<Tensor>(it.count > 1 ? it.count : 0);
  return parts.bytes();
}

template <class Bits>
u64 workspace_bytes(u64 n, u64 k, u32 tensors) {
  Problem<Bits> it{};
  it.n = n;
  it.count = tensors;
  it.capacity = static_cast<u32>(capacity_of(n, k));
  Tensor* described = nullptr;
  return carve<Bits>(nullptr, it, described);
}

template <class Bits>
struct Result {
  u32* indices;
  Bits* values;
  u32* first_nan;
  u32* starts;  // null: indices are those of all tensors joined
};

// `tensors` is the host's.
template <class Bits, class Launcher>
void describe(Launcher& launcher, Problem<Bits>& it, const Tensor* tensors, Tensor* to) {
  it.only = tensors[0];
  it.tensors = to;
  for (u32 from = 0; it.count > 1 && from < it.count; from += kDeposited) {
    Deposit::Args args{};
    args.to = to + from;
    args.count = it.count - from < kDeposited ? it.count - from : kDeposited;
    for (u32 i = 0; i < args.count; ++i) args.tensors[i] = tensors[from + i];
    launcher.template launch<Deposit>(1, args);
  }
}

// The k largest of `count` tensors of n elements together, count >= 1; Feed is Plain or Updated.
template <class Bits, class Feed, class Launcher>
void select(Launcher& launcher, const Tensor* tensors, u32 count, u64 n, u32 k, Infinity infinity,
            const Feed& feed, bool masked, const Result<Bits>& result, void* workspace) {
  Problem<Bits> it{};
  it.count = count;
  it.n = n;
  it.k = k;
  it.infinity = infinity.magnitude;
  it.first_nan = result.first_nan;
  it.capacity = static_cast<u32>(capacity_of(n, k));
  Tensor* described = nullptr;
  carve(workspace, it, described);
  describe(launcher, it, tensors, described);
  // State, histograms and words of tiles lie in front and together.
  launcher.fill(it.first_nan, 0xFF, sizeof(u32));
  launcher.fill(it.state, 0,
                static_cast<u64>(reinterpret_cast<unsigned char*>(it.candidate_indices) -
                                 reinterpret_cast<unsigned char*>(it.state)));
  const u64 tiles = ceil_div(n, kTile);
  const u64 most = launcher.processors() * kBlocksPerProcessor;
  const u64 blocks = tiles < most ? tiles : most;
  launcher.template launch<Count<Bits, Feed, 0>>(blocks, {it, feed});
  launcher.template launch<Compact<Bits, true>>(blocks,
                                                {it, nullptr, nullptr, false, false, 0, nullptr});
  launcher.template launch<Count<Bits, Plain, 1>>(blocks, {it, {}});
  if (passes<Bits>() == 3) launcher.template launch<Count<Bits, Plain, 2>>(blocks, {it, {}});
  launcher.template launch<Compact<Bits, false>>(
      blocks, {it, result.indices, result.values, Feed::kUpdates, masked, k, nullptr});
  if (result.starts == nullptr) return;
  launcher.template launch<Split<Bits, true>>(ceil_div(count + 1, kThreads),
                                              {it, result.indices, result.starts});
  launcher.template launch<Split<Bits, false>>(ceil_div(k, kThreads),
                                               {it, result.indices, result.starts});
}

template <class Bits, class Launcher>
void top_k(Launcher& launcher, const Tensor* tensors, u32 count, u64 n, u32 k, Infinity infinity,
           const Result<Bits>& result, void* workspace) {
  select(launcher, tensors, count, n, k, infinity, Plain{}, false, result, workspace);
}

// Every tensor has a gradient, and all of them momentum or none. `values` receives floats.
template <class Launcher>
void top_k_feedback(Launcher& launcher, const Tensor* tensors, u32 count, u64 n, u32 k,
                    const Law& law, const Result<u32>& result, void* workspace) {
  select(launcher, tensors, count, n, k, kFloat32, Updated{law}, law.masked, result, workspace);
}

// Settles on a threshold that is given.
struct Given {
  static constexpr int kThreads = 32;
  struct Args {
    State* state;
    u32 threshold;
  };
  struct Shared {
    u32 unused;
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared&, const Args& args) {
    block.each([&](int thread) {
      if (thread != 0) return;
      args.state->threshold = args.threshold;
      args.state->settled = 1;
      args.state->candidates = kNone;
    });
  }
};

template <class Bits>
u64 above_workspace_bytes(u64 n) {
  Problem<Bits> it{};
  it.n = n;
  it.count = 1;
  Tensor* described = nullptr;
  return carve<Bits>(nullptr, it, described);
}

// Every element whose magnitude is at least `threshold`, in order; `count` receives how many there
// are, of which no more than `room` are written. x is read once.
template <class Bits, class Launcher>
void above(Launcher& launcher, const Tensor& from, u64 n, u32 threshold, Infinity infinity,
           u32 room, u32* count, const Result<Bits>& result, void* workspace) {
  Problem<Bits> it{};
  it.count = 1;
  it.n = n;
  it.infinity = infinity.magnitude;
  it.first_nan = result.first_nan;
  Tensor* described = nullptr;
  const u64 bytes = carve(workspace, it, described);
  it.only = from;
  launcher.fill(it.first_nan, 0xFF, sizeof(u32));
  launcher.fill(workspace, 0, bytes);
  launcher.template launch<Given>(1, {it.state, threshold});
  const u64 tiles = ceil_div(n, kTile);
  const u64 most = launcher.processors() * kBlocksPerProcessor;
  launcher.template launch<Compact<Bits, false>>(
      tiles < most ? tiles : most, {it, result.indices, result.values, false, false, room, count});
}

}  // namespace edge::cuda::selection
