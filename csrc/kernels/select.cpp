// Compiled without fused multiply-adds (CMakeLists.txt): what is selected must not depend on the
// instruction set.
#include "kernels/select.h"

#include "kernels/compress.h"

namespace edge {
namespace EDGE_ISA {

namespace {

constexpr std::uint32_t kGoldenRatio = 0x9E3779B9U;  // 2^32 / 1.618..., odd

// The sources: how bits are had from memory, a vector or one at a time. take() also stores what it
// accumulates, read() looks at what it would be, taken() at what it was.
struct Float32 {
  const std::uint32_t* x;
  explicit Float32(const SelectRun& run) : x(static_cast<const std::uint32_t*>(run.x)) {}
  WordVec take_vector(Index i) const { return load_words(x + i); }
  std::uint32_t take(Index i) const { return x[i]; }
  std::uint32_t read(Index i) const { return x[i]; }
  std::uint32_t taken(Index i) const { return x[i]; }
};

struct Bits16 {
  typedef std::uint16_t Halves __attribute__((vector_size(EDGE_VECTOR_FLOATS * 2)));
  typedef std::uint16_t UnalignedHalves
      __attribute__((vector_size(EDGE_VECTOR_FLOATS * 2), aligned(2), may_alias));
  const std::uint16_t* x;
  explicit Bits16(const SelectRun& run) : x(static_cast<const std::uint16_t*>(run.x)) {}
  WordVec take_vector(Index i) const {
    const Halves halves = *reinterpret_cast<const UnalignedHalves*>(x + i);
    return __builtin_convertvector(halves, WordVec) << 16;
  }
  std::uint32_t take(Index i) const { return static_cast<std::uint32_t>(x[i]) << 16; }
  std::uint32_t read(Index i) const { return take(i); }
  std::uint32_t taken(Index i) const { return take(i); }
};

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct Residual {
  const float* g;
  float* v;
  explicit Residual(const SelectRun& run) : g(static_cast<const float*>(run.x)), v(run.residual) {}
  WordVec take_vector(Index i) const {
    const Vec sum = load(v + i) + load(g + i);
    store(v + i, sum);
    return reinterpret_cast<WordVec>(sum);
  }
  std::uint32_t take(Index i) const {
    v[i] += g[i];
    return bits_of(v[i]);
  }
  std::uint32_t read(Index i) const { return bits_of(v[i] + g[i]); }
  std::uint32_t taken(Index i) const { return bits_of(v[i]); }
};

template <bool Nesterov>
struct Dgc {
  const float* g;
  float* u;
  float* v;
  float m;
  explicit Dgc(const SelectRun& run)
      : g(static_cast<const float*>(run.x)), u(run.momentum), v(run.residual), m(run.factor) {}
  // (u, v) of one step, on numbers or vectors.
  template <class T>
  void step(T gradient, T factor, T& momentum, T& residual) const {
    momentum = Nesterov ? factor * (momentum + gradient) : factor * momentum + gradient;
    residual = residual + (Nesterov ? momentum + gradient : momentum);
  }
  WordVec take_vector(Index i) const {
    Vec momentum = load(u + i), residual = load(v + i);
    step(load(g + i), splat(m), momentum, residual);
    store(u + i, momentum);
    store(v + i, residual);
    return reinterpret_cast<WordVec>(residual);
  }
  std::uint32_t take(Index i) const {
    step(g[i], m, u[i], v[i]);
    return bits_of(v[i]);
  }
  std::uint32_t read(Index i) const {
    float momentum = u[i], residual = v[i];
    step(g[i], m, momentum, residual);
    return bits_of(residual);
  }
  std::uint32_t taken(Index i) const { return bits_of(v[i]); }
};

// Where an element's index comes from.
struct Counted {
  std::uint32_t first;
  explicit Counted(const SelectRun& run) : first(run.index) {}
  WordVec vector(Index i) const { return lane_numbers() + (first + static_cast<std::uint32_t>(i)); }
  std::uint32_t one(Index i) const { return first + static_cast<std::uint32_t>(i); }
};

struct Picked {
  const std::uint32_t* index;
  explicit Picked(const SelectRun& run) : index(run.picked) {}
  WordVec vector(Index i) const { return load_words(index + i); }
  std::uint32_t one(Index i) const { return index[i]; }
};

// Calls work(source, indices) with the types of the run.
template <class Work>
EDGE_INLINE void with_source(const SelectRun& run, const Work& work) {
  switch (run.kind) {
    case SelectKind::float32:
      return work(Float32(run), Counted(run));
    case SelectKind::bits16:
      return work(Bits16(run), Counted(run));
    case SelectKind::residual:
      return work(Residual(run), Counted(run));
    case SelectKind::dgc:
      return work(Dgc<false>(run), Counted(run));
    case SelectKind::nesterov:
      return work(Dgc<true>(run), Counted(run));
    case SelectKind::picked:
      return work(Float32(run), Picked(run));
  }
}

// The mask without the lanes that tie with the threshold when no more of them are wanted.
EDGE_INLINE unsigned without_ties(unsigned mask, unsigned ties, SelectOut& out) {
  const unsigned kept = mask & ~ties;
  if (ties == 0 || out.ties == 0) return kept;
  while (set_bits(ties) > out.ties) ties ^= 0x80000000U >> __builtin_clz(ties);  // the last one
  out.ties -= set_bits(ties);
  return kept | ties;
}

void emit_one(std::uint32_t index, std::uint32_t bits, std::uint32_t threshold, SelectOut& out) {
  const std::uint32_t key = bits & kKeyMask;
  if (key < threshold || out.overflow) return;
  if (key == threshold) {
    if (out.ties == 0) return;
    if (out.ties < kAllTies) --out.ties;
  }
  if (out.count == out.capacity) {
    out.overflow = true;
    return;
  }
  if (key > out.greatest) out.greatest = key;
  out.index[out.count] = index;
  out.bits[out.count] = bits;
  ++out.count;
}

// The lanes of a vector that pass.
EDGE_INLINE unsigned passing(WordVec keys, WordVec thresholds, bool all_ties, SelectOut& out) {
  const unsigned mask = at_least(keys, thresholds);
  return all_ties ? mask : without_ties(mask, equal_to(keys, thresholds), out);
}

// What passes of one vector. There is room for the whole of it, since both stores write all lanes.
EDGE_INLINE void emit_packed(WordVec index, WordVec bits, unsigned mask, SelectOut& out) {
  store_packed(out.index + out.count, index, mask);
  store_packed(out.bits + out.count, bits, mask);
  out.count += set_bits(mask);
}

EDGE_INLINE std::uint32_t greatest_lane(WordVec v) {
  std::uint32_t greatest = 0;
  for (Index lane = 0; lane < kLanes; ++lane) {
    if (v[lane] > greatest) greatest = v[lane];
  }
  return greatest;
}

constexpr Index kVectors = 4;
constexpr Index kGroup = kVectors * kLanes;  // at most 64: a mask has a bit for each

EDGE_INLINE Index group_bits(std::uint64_t mask) {
#if defined(__AVX2__)
  return __builtin_popcountll(mask);
#else
  Index bits = 0;
  for (; mask != 0; mask >>= kLanes) bits += set_bits(mask & ((1U << kLanes) - 1));
  return bits;
#endif
}

// What passes of a group, by its bits: two of them whether there are or not, because where one
// passes now and then nobody can predict how many do. Needs room for two.
template <class Source, class Indices>
EDGE_INLINE void emit_few(const Source& source, const Indices& indices, Index i, std::uint64_t mask,
                          SelectOut& out) {
  const Index end = out.count + group_bits(mask);
  EDGE_UNROLL for (Index j = 0; j < 2; ++j) {
    const Index place = i + __builtin_ctzll(mask | 1ULL << (kGroup - 1));
    out.index[out.count + j] = indices.one(place);
    out.bits[out.count + j] = source.taken(place);
    mask &= mask - 1;
  }
  for (Index j = 2; mask != 0; ++j, mask &= mask - 1) {
    const Index place = i + __builtin_ctzll(mask);
    out.index[out.count + j] = indices.one(place);
    out.bits[out.count + j] = source.taken(place);
  }
  out.count = end;
}

// A group one at a time: where the output ends.
template <class Source, class Indices>
__attribute__((noinline)) void emit_carefully(const Source& source, const Indices& indices, Index i,
                                              std::uint32_t threshold, SelectOut& out) {
  for (Index j = i; j < i + kGroup; ++j) emit_one(indices.one(j), source.taken(j), threshold, out);
}

// Four vectors share one branch: where few elements pass, most groups have none. Where more do,
// a branch that nobody can predict costs more than it saves, and where many do, whole vectors are
// packed.
template <class Source, class Indices>
void filter(const Source& source, const Indices& indices, const SelectFilterArgs& args) {
  SelectOut out = *args.out;
  const bool all_ties = out.ties >= kAllTies;
  const WordVec thresholds = splat_word(args.threshold);
  WordVec greatest = {};
  Index i = 0;
  for (; i + kGroup <= args.run.count; i += kGroup) {
    WordVec bits[kVectors], keys[kVectors];
    EDGE_UNROLL for (Index j = 0; j < kVectors; ++j) {
      bits[j] = source.take_vector(i + j * kLanes);
      keys[j] = bits[j] & kKeyMask;
    }
    const WordVec most =
        larger_words(larger_words(keys[0], keys[1]), larger_words(keys[2], keys[3]));
    greatest = larger_words(greatest, most);
    if (args.share == SelectShare::rare && at_least(most, thresholds) == 0) continue;
    if (out.capacity - out.count < kGroup) {
      if (at_least(most, thresholds) != 0) emit_carefully(source, indices, i, args.threshold, out);
    } else if (args.share == SelectShare::large) {
      EDGE_UNROLL for (Index j = 0; j < kVectors; ++j)
          emit_packed(indices.vector(i + j * kLanes), bits[j],
                      passing(keys[j], thresholds, all_ties, out), out);
    } else {
      std::uint64_t mask = 0;
      EDGE_UNROLL for (Index j = 0; j < kVectors; ++j) mask |=
          static_cast<std::uint64_t>(passing(keys[j], thresholds, all_ties, out)) << (j * kLanes);
      emit_few(source, indices, i, mask, out);
    }
  }
  for (; i < args.run.count; ++i) emit_one(indices.one(i), source.take(i), args.threshold, out);
  const std::uint32_t most = greatest_lane(greatest);
  if (most > out.greatest) out.greatest = most;
  *args.out = out;
}

template <class Source>
Index count_of(const Source& source, Index count, std::uint32_t threshold) {
  const WordVec thresholds = splat_word(threshold);
  Index total = 0, i = 0;
  while (i + kLanes <= count) {
    // No lane can count beyond 32 bits within a block.
    const Index end = smaller(count, i + (Index{1} << 24));
    WordVec sums = {};
    for (; i + kLanes <= end; i += kLanes)
      sums -= reinterpret_cast<WordVec>((source.take_vector(i) & kKeyMask) >= thresholds);
    for (Index lane = 0; lane < kLanes; ++lane) total += sums[lane];
  }
  for (; i < count; ++i) total += (source.read(i) & kKeyMask) >= threshold;
  return total;
}

template <class Source>
void histogram(const Source& source, const SelectHistogramArgs& args) {
  const std::uint32_t mask = static_cast<std::uint32_t>(args.digits - 1);
  for (Index i = 0; i < args.run.count; ++i) {
    const std::uint32_t key = source.read(i) & kKeyMask;
    std::uint32_t* counts = args.counts + i % kSelectTables * args.digits;
    counts[key >> args.shift & mask] += key >> args.prefix_shift == args.prefix;
  }
}

}  // namespace

void select_sample(const SelectSampleArgs& args, const Worker&) {
  const std::uint64_t n = static_cast<std::uint64_t>(args.run.count);
  with_source(args.run, [&](const auto& source, const auto&) {
    std::uint32_t place = args.start;
    for (Index i = 0; i < args.count; ++i, place += kGoldenRatio)
      args.keys[i] = source.read(static_cast<Index>(place * n >> 32)) & kKeyMask;
  });
}

void select_filter(const SelectFilterArgs& args, const Worker&) {
  with_source(args.run,
              [&](const auto& source, const auto& indices) { filter(source, indices, args); });
}

void select_below(const SelectBelowArgs& args, const Worker&) {
  SelectOut& out = *args.out;
  const WordVec thresholds = splat_word(args.threshold);
  Index i = 0;
  for (; i + kLanes <= args.count && out.count + kLanes <= out.capacity; i += kLanes) {
    const WordVec bits = load_words(args.x + i);
    const unsigned mask = at_least(bits & kKeyMask, thresholds) ^ ((1U << kLanes) - 1);
    store_packed(out.bits + out.count, bits, mask);
    out.count += set_bits(mask);
  }
  for (; i < args.count; ++i) {
    if ((args.x[i] & kKeyMask) >= args.threshold) continue;
    if (out.count == out.capacity) {
      out.overflow = true;
      return;
    }
    out.bits[out.count++] = args.x[i];
  }
}

void select_count(const SelectCountArgs& args, const Worker&) {
  *args.count = args.run.kind == SelectKind::bits16
                    ? count_of(Bits16(args.run), args.run.count, args.threshold)
                    : count_of(Float32(args.run), args.run.count, args.threshold);
}

void select_histogram(const SelectHistogramArgs& args, const Worker&) {
  args.run.kind == SelectKind::bits16 ? histogram(Bits16(args.run), args)
                                      : histogram(Float32(args.run), args);
}

}  // namespace EDGE_ISA
}  // namespace edge
