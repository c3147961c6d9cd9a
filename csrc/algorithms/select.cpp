#include "algorithms/select.h"

#include <algorithm>
#include <cmath>

namespace edge {

namespace {

enum Block : std::size_t { kSample, kIndex, kBits, kBand, kTables, kWide };

constexpr Index kSmall = 16384;  // elements; below, sampling costs more than counting again
constexpr Index kFewPicked = 8192;
constexpr Index kVector = 64;  // the most that a filter packs at once, and may write past its count
constexpr std::uint32_t kNone = kKeyMask + 1;  // above every key

Index sample_of(Index total) { return std::clamp<Index>(total / 512, 2048, 65536); }

// Of a sample whose r-th largest estimates the k-th of all: ranks that lie beyond it on either
// side but once in some thousand times. A rank's standard deviation is about sqrt(r).
double margin_of(double r) { return 3.5 * std::sqrt(r) + 3.0; }

// Elements that a worker with `hits` of its sample above the lower bound may have there.
Index room_of(Index hits, Index elements, Index sampled) {
  const double r = static_cast<double>(hits);
  const double scale =
      static_cast<double>(elements) / static_cast<double>(std::max<Index>(sampled, 1));
  const double room = std::ceil((r + 4.0 * std::sqrt(r) + 8.0) * scale);
  return std::min(elements, static_cast<Index>(room)) + kVector;
}

SelectShare share_of(Index passing, Index total) {
  if (passing <= total / 128) return SelectShare::rare;
  return passing <= total / 24 ? SelectShare::small : SelectShare::large;
}

SelectRun run_of(const std::uint32_t* bits, Index count) {
  SelectRun run;
  run.x = bits;
  run.count = count;
  return run;
}

}  // namespace

Selection::Selection(Workspace& workspace, SelectProblem problem)
    : workspace_(workspace),
      problem_(std::move(problem)),
      accumulated_(problem_.kind == SelectKind::float32 || problem_.kind == SelectKind::bits16) {
  offsets_.assign(1, 0);
  for (const SelectTensor& tensor : problem_.tensors)
    offsets_.push_back(offsets_.back() + tensor.count);
  const Index total = offsets_.back(), workers = total <= kSmall ? 1 : workspace_.threads();
  parts_.resize(static_cast<std::size_t>(workers));
  for (Index w = 0; w < workers; ++w) {
    parts_[static_cast<std::size_t>(w)].first = total * w / workers;
    parts_[static_cast<std::size_t>(w)].last = total * (w + 1) / workers;
  }
}

// Calls work(part) for every part, each on its thread.
template <class Work>
void Selection::each(const Work& work) {
  if (parts_.size() == 1) return work(parts_[0]);
  workspace_.run(
      [&](const Worker& worker) { work(parts_[static_cast<std::size_t>(worker.index)]); });
}

// Calls work(run) for every tensor's part of [first, last), by the kind that fits its state.
template <class Work>
void Selection::each_run(Index first, Index last, const Work& work) const {
  auto after = std::upper_bound(offsets_.begin(), offsets_.end(), first);
  for (auto t = static_cast<std::size_t>(after - offsets_.begin()) - 1; first < last; ++t) {
    const SelectTensor& tensor = problem_.tensors[t];
    const Index skip = first - offsets_[t], count = std::min(last - first, tensor.count - skip);
    if (count == 0) continue;
    SelectRun run;
    const bool wide = problem_.kind != SelectKind::bits16;
    const bool fused = tensor.residual != nullptr;
    run.kind = fused && accumulated_ ? SelectKind::float32 : problem_.kind;
    const void* from = fused && accumulated_ ? tensor.residual : tensor.x;
    run.x = static_cast<const char*>(from) + skip * (wide ? 4 : 2);
    if (fused) run.residual = tensor.residual + skip;
    if (tensor.momentum != nullptr) run.momentum = tensor.momentum + skip;
    run.factor = problem_.factor;
    run.count = count;
    run.index = static_cast<std::uint32_t>(first);
    work(run);
    first += count;
  }
}

// The k-th largest key, in [low, high], and what of every part is greater or equal, where
// count(part, t) says how many of its keys are at least t.
template <class Count>
void Selection::rank(const Count& count, Index k, std::uint32_t low, std::uint32_t high) {
  while (low < high) {
    const std::uint32_t middle = low + (high - low + 1) / 2;
    Index reach = 0;
    for (const Part& part : parts_) reach += count(part, middle);
    (reach >= k ? low : high) = reach >= k ? middle : middle - 1;
  }
  for (Part& part : parts_) {
    part.greater = count(part, low + 1);
    part.equal = count(part, low) - part.greater;
  }
  threshold_ = low;
}

Index Selection::counted(Index first, Index last, std::uint32_t threshold) const {
  Index total = 0;
  each_run(first, last, [&](const SelectRun& run) {
    Index count = 0;
    workspace_.kernels().select_count({run, threshold, &count}, {});
    total += count;
  });
  return total;
}

// Adds the gradients without selecting anything.
void Selection::accumulate() {
  if (accumulated_) return;
  each([&](const Part& part) {
    SelectOut nothing;
    each_run(part.first, part.last, [&](const SelectRun& run) {
      workspace_.kernels().select_filter({run, kNone, SelectShare::rare, &nothing}, {});
    });
  });
  accumulated_ = true;
}

// Keys of `size` elements, every part's and every tensor's in proportion.
void Selection::sample(std::uint32_t start, Index size) {
  sample_ = size;
  const Index total = offsets_.back();
  std::uint32_t* keys = workspace_.block<std::uint32_t>(kSample, static_cast<std::uint64_t>(size));
  each([&](const Part& part) {
    each_run(part.first, part.last, [&](const SelectRun& run) {
      const Index from = size * run.index / total, to = size * (run.index + run.count) / total;
      workspace_.kernels().select_sample(
          {run, start + static_cast<std::uint32_t>(from) * 0x9E3779B9U, to - from, keys + from},
          {});
    });
  });
}

Index Selection::reach_of(Keys keys, std::uint32_t threshold) const {
  Index reach = 0;
  workspace_.kernels().select_count({run_of(keys.at, keys.count), threshold, &reach}, {});
  return reach;
}

// The key of that rank, from 1, largest first, which lies in [low, high].
std::uint32_t Selection::key_of(Keys keys, Index rank, std::uint32_t low,
                                std::uint32_t high) const {
  while (low < high) {
    const std::uint32_t middle = low + (high - low + 1) / 2;
    const bool reached = reach_of(keys, middle) >= rank;
    (reached ? low : high) = reached ? middle : middle - 1;
  }
  return low;
}

// The sample's keys of two ranks, the second smaller or 0 for none. Once hardly more than the first
// rank are left at or above a threshold, those alone are looked through.
Selection::Bounds Selection::sampled_keys(Index lower, Index upper) const {
  Keys keys{workspace_.block<std::uint32_t>(kSample, static_cast<std::uint64_t>(sample_)), sample_};
  std::uint32_t low = 0, high = kKeyMask;
  Index left = sample_;
  while (low < high && left > 2 * lower + kVector) {
    const std::uint32_t middle = low + (high - low + 1) / 2;
    const Index reach = reach_of(keys, middle);
    (reach >= lower ? low : high) = reach >= lower ? middle : middle - 1;
    if (reach >= lower) left = reach;
  }
  if (left < sample_ && left <= 2 * lower + kVector) {
    SelectOut out;
    out.capacity = left + kVector;
    out.index = workspace_.block<std::uint32_t>(kIndex, static_cast<std::uint64_t>(out.capacity));
    out.bits = workspace_.block<std::uint32_t>(kBits, static_cast<std::uint64_t>(out.capacity));
    out.ties = kAllTies;
    workspace_.kernels().select_filter(
        {run_of(keys.at, sample_), low, share_of(left, sample_), &out}, {});
    keys = {out.bits, out.count};
  }
  low = key_of(keys, lower, low, high);
  return {low, upper < 1 ? kNone : key_of(keys, upper, low, kKeyMask) + 1};
}

// Accumulates, and picks every element from `low` on, the `rank`-th of the sample. False where they
// are more than the sample promised, or ties make them too many to start.
bool Selection::pick(Index rank, std::uint32_t low) {
  const Index total = offsets_.back();
  const std::uint32_t* keys =
      workspace_.block<std::uint32_t>(kSample, static_cast<std::uint64_t>(sample_));
  Index room = 0, passing = 0;
  for (Part& part : parts_) {
    const Index from = sample_ * part.first / total, to = sample_ * part.last / total;
    Index hits = 0;
    workspace_.kernels().select_count({run_of(keys + from, to - from), low, &hits}, {});
    part.picked = SelectOut{};
    part.picked.capacity = room_of(hits, part.last - part.first, to - from);
    room += part.picked.capacity;
    passing += hits;
  }
  if (passing > 2 * rank) return false;
  std::uint32_t* index = workspace_.block<std::uint32_t>(kIndex, static_cast<std::uint64_t>(room));
  std::uint32_t* bits = workspace_.block<std::uint32_t>(kBits, static_cast<std::uint64_t>(room));
  for (Part& part : parts_) {
    part.picked.index = index;
    part.picked.bits = bits;
    part.picked.ties = kAllTies;
    index += part.picked.capacity;
    bits += part.picked.capacity;
  }
  const SelectShare share = share_of(passing, sample_);
  each([&](Part& part) {
    each_run(part.first, part.last, [&](const SelectRun& run) {
      workspace_.kernels().select_filter({run, low, share, &part.picked}, {});
    });
  });
  accumulated_ = true;
  return std::none_of(parts_.begin(), parts_.end(),
                      [](const Part& part) { return part.picked.overflow; });
}

// The k-th largest among the picked, which are all that reach `low`. Most of them are above `high`
// where that is a bound at all, so only the band below it is searched.
void Selection::rank_picked(Index k, std::uint32_t low, std::uint32_t high) {
  Index total = 0, above = 0, room = 0;
  for (const Part& part : parts_) {
    total += part.picked.count;
    room += part.picked.count / 2 + kVector;
  }
  bool narrowed = high != kNone && total > kFewPicked;
  if (narrowed) {
    std::uint32_t* bits = workspace_.block<std::uint32_t>(kBand, static_cast<std::uint64_t>(room));
    for (Part& part : parts_) {
      part.band_bits = bits;
      bits += part.picked.count / 2 + kVector;
    }
    each([&](Part& part) {
      SelectOut out;
      out.bits = part.band_bits;
      out.capacity = part.picked.count / 2 + kVector;
      workspace_.kernels().select_below({part.picked.bits, part.picked.count, high, &out}, {});
      part.band = out.count;
      part.above = out.overflow ? total : part.picked.count - out.count;
    });
    for (const Part& part : parts_) above += part.above;
    narrowed = above < k;  // not when the upper bound is none, or the band did not fit
  }
  for (Part& part : parts_) {
    if (narrowed) continue;
    part.band_bits = part.picked.bits;
    part.band = part.picked.count;
    part.above = 0;
  }
  const auto reach = [&](const Part& part, std::uint32_t t) {
    return part.above + reach_of({part.band_bits, part.band}, t);
  };
  Index bounded = 0;  // what reaches the upper bound
  for (const Part& part : parts_)
    bounded += high == kNone ? k : narrowed ? part.above : reach(part, high);
  rank(reach, k, low, bounded < k ? high - 1 : kKeyMask);
}

// True where the k-th largest key is this one, as it is when much of the input is one number.
bool Selection::tied(Index k, std::uint32_t key) {
  accumulate();
  Index greater = 0, equal = 0;
  each([&](Part& part) {
    part.greater = counted(part.first, part.last, key + 1);
    part.equal = counted(part.first, part.last, key) - part.greater;
  });
  for (const Part& part : parts_) greater += part.greater, equal += part.equal;
  threshold_ = key;
  return greater < k && k <= greater + equal;
}

// True when the sample's bracket held.
bool Selection::bracketed(Index k) {
  const Index total = offsets_.back(), size = sample_of(total);
  const double r = static_cast<double>(size) * static_cast<double>(k) / static_cast<double>(total);
  sample(0, size);
  const Index lower = static_cast<Index>(std::ceil(r + margin_of(r)));
  const Index upper = static_cast<Index>(std::floor(r - margin_of(r)));
  const auto [low, high] = sampled_keys(lower, upper);
  if (high == low + 1) return tied(k, low);
  if (!pick(lower, low)) return false;
  Index picked = 0;
  for (const Part& part : parts_) picked += part.picked.count;
  if (picked < k) return false;
  rank_picked(k, low, high);
  from_picked_ = true;
  return true;
}

void Selection::bisected(Index k) {
  rank([&](const Part& part, std::uint32_t t) { return counted(part.first, part.last, t); }, k, 0,
       kKeyMask);
}

// One digit more of the k-th largest key, whose upper digits are threshold_ >> (shift + bits).
// Returns k less what is greater by this digit.
Index Selection::radix_step(Index k, std::int32_t shift, std::int32_t bits) {
  const Index digits = Index{1} << bits, size = kSelectTables * digits;
  std::uint32_t* tables =
      workspace_.block<std::uint32_t>(kTables, static_cast<std::uint64_t>(size) * parts_.size());
  const auto table_of = [&](const Part& part) { return tables + (&part - parts_.data()) * size; };
  each([&](const Part& part) {
    std::uint32_t* table = table_of(part);
    std::fill_n(table, size, 0U);
    each_run(part.first, part.last, [&](const SelectRun& run) {
      workspace_.kernels().select_histogram(
          {run, threshold_ >> (shift + bits), shift + bits, shift, digits, table}, {});
    });
    for (Index i = digits; i < size; ++i) table[i % digits] += table[i];
  });
  for (Index digit = digits - 1;; --digit) {
    Index equal = 0;
    for (Part& part : parts_) {
      part.equal = table_of(part)[digit];
      equal += part.equal;
    }
    if (equal >= k) {
      threshold_ |= static_cast<std::uint32_t>(digit) << shift;
      return k;
    }
    k -= equal;
    for (Part& part : parts_) part.greater += part.equal;
  }
}

void Selection::radix(Index k) {
  threshold_ = 0;
  for (Part& part : parts_) part.greater = 0;
  k = radix_step(k, 20, 11);
  k = radix_step(k, 10, 10);
  // The lowest 16 bits of a float16 or bfloat16 are 0.
  if (problem_.kind != SelectKind::bits16) radix_step(k, 0, 10);
}

// All of them: nothing to rank.
void Selection::whole() {
  threshold_ = 0;
  for (Part& part : parts_) {
    part.greater = 0;
    part.equal = part.last - part.first;
  }
}

void Selection::top_k(Index k) {
  const Index total = offsets_.back();
  count_ = k;
  from_picked_ = false;
  if (total > kSmall && k <= total / 4 && bracketed(k)) return;
  accumulate();
  if (k == total) return whole();
  total <= kSmall ? bisected(k) : radix(k);
}

void Selection::above(std::uint32_t threshold) {
  accumulate();
  threshold_ = threshold;
  count_ = 0;
  each([&](Part& part) {
    part.greater = 0;
    part.equal = counted(part.first, part.last, threshold);
  });
  for (const Part& part : parts_) count_ += part.equal;
}

void Selection::sampled(Index k, const SampledLaw& law) {
  const Index total = offsets_.back();
  for (Index attempt = 0; attempt < law.attempts; ++attempt) {
    std::uint64_t h = law.seed + static_cast<std::uint64_t>(attempt) * 0x9E3779B97F4A7C15U;
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9U;
    h = (h ^ h >> 27) * 0x94D049BB133111EBU;
    sample(static_cast<std::uint32_t>(h >> 32), law.sample);
    const double r =
        static_cast<double>(law.sample) * static_cast<double>(k) / static_cast<double>(total);
    const Index rank = std::max<Index>(1, static_cast<Index>(std::lround(r)));
    threshold_ = sampled_keys(rank, 0).low;
    if (!pick(rank, threshold_)) break;
    count_ = 0;
    for (Part& part : parts_) {
      part.greater = 0;
      part.equal = part.picked.count;
      count_ += part.equal;
    }
    if (count_ > law.most) break;
    from_picked_ = true;
    if (count_ >= law.least) return;
  }
  top_k(k);
}

// Zeroes residual and momentum at these ascending indices.
void Selection::clear(const std::int32_t* index, Index count) const {
  std::size_t t = 0;
  for (Index i = 0; i < count; ++i) {
    while (index[i] >= offsets_[t + 1]) ++t;
    const SelectTensor& tensor = problem_.tensors[t];
    tensor.residual[index[i] - offsets_[t]] = 0.0F;
    if (tensor.momentum != nullptr && problem_.clear_momentum)
      tensor.momentum[index[i] - offsets_[t]] = 0.0F;
  }
}

bool Selection::emit(std::int32_t* index, void* values) {
  const bool narrow = problem_.kind == SelectKind::bits16;
  auto* wide = narrow ? workspace_.block<std::uint32_t>(kWide, static_cast<std::uint64_t>(count_))
                      : static_cast<std::uint32_t*>(values);
  const SelectShare share = from_picked_ ? SelectShare::large : share_of(count_, offsets_.back());
  std::vector<SelectOut> outs(parts_.size());
  Index at = 0, ties = count_;
  for (const Part& part : parts_) ties -= part.greater;
  for (std::size_t w = 0; w < parts_.size(); ++w) {
    SelectOut& out = outs[w];
    out.ties = std::min(ties, parts_[w].equal);
    out.capacity = parts_[w].greater + out.ties;
    out.index = reinterpret_cast<std::uint32_t*>(index) + at;
    out.bits = wide + at;
    ties -= out.ties;
    at += out.capacity;
  }
  each([&](const Part& part) {
    SelectOut& out = outs[static_cast<std::size_t>(&part - parts_.data())];
    const auto filter = [&](const SelectRun& run) {
      workspace_.kernels().select_filter({run, threshold_, share, &out}, {});
    };
    if (!from_picked_) return each_run(part.first, part.last, filter);
    SelectRun run = run_of(part.picked.bits, part.picked.count);
    run.kind = SelectKind::picked;
    run.picked = part.picked.index;
    filter(run);
  });
  for (const SelectOut& out : outs) {
    if (out.greatest > problem_.infinity) return false;
  }
  if (narrow) {
    for (Index i = 0; i < count_; ++i)
      static_cast<std::uint16_t*>(values)[i] = static_cast<std::uint16_t>(wide[i] >> 16);
  } else if (problem_.kind != SelectKind::float32) {
    each([&](const Part& part) {
      const SelectOut& out = outs[static_cast<std::size_t>(&part - parts_.data())];
      clear(index + (out.index - reinterpret_cast<std::uint32_t*>(index)), out.count);
    });
  }
  return true;
}

}  // namespace edge
