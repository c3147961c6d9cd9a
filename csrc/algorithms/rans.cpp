#include "algorithms/rans.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "algorithms/broken_stream.h"

namespace edge {
namespace {

constexpr unsigned kGroupBits = 4;
// Of an escaped value: v takes 33 bits and a sign, so its code 34.
constexpr unsigned kMaxGroups = 9;
constexpr Index kChunk = 256;

std::uint64_t high_product(std::uint64_t a, std::uint64_t b) {
#if defined(__SIZEOF_INT128__)
  __extension__ typedef unsigned __int128 Wide;
  return static_cast<std::uint64_t>(static_cast<Wide>(a) * b >> 64);
#else
  const std::uint64_t low = (a & 0xFFFFFFFFU) * (b & 0xFFFFFFFFU);
  const std::uint64_t middle = (a >> 32) * (b & 0xFFFFFFFFU) + (low >> 32);
  const std::uint64_t other = (a & 0xFFFFFFFFU) * (b >> 32) + (middle & 0xFFFFFFFFU);
  return (a >> 32) * (b >> 32) + (middle >> 32) + (other >> 32);
#endif
}

struct WideState {
  using State = std::uint64_t;
  using Word = std::uint32_t;
  static constexpr State kLow = State{1} << 31;
};

struct NarrowState {
  using State = std::uint32_t;
  using Word = std::uint8_t;
  static constexpr State kLow = State{1} << 23;
};

template <class Form>
constexpr unsigned kWordBits = 8 * sizeof(typename Form::Word);

// A state that is neither could not have been written.
template <class Form>
bool valid(typename Form::State x) {
  return x >= Form::kLow && (x >> kWordBits<Form>) < Form::kLow;
}

// A buffer that is filled from its end to its front.
class BackBuffer {
 public:
  explicit BackBuffer(std::size_t bytes) : bytes_(bytes) {}

  std::uint8_t* end() { return bytes_.data() + bytes_.size(); }
  // Where to go on writing once there is room for `room` bytes before `at`; grows at least twofold.
  std::uint8_t* reserve(std::uint8_t* at, std::size_t room) {
    const auto before = static_cast<std::size_t>(at - bytes_.data());
    if (before >= room) return at;
    const std::size_t used = bytes_.size() - before;
    std::vector<std::uint8_t> larger(std::max(2 * used, used + room));
    std::copy_backward(bytes_.end() - static_cast<std::ptrdiff_t>(used), bytes_.end(),
                       larger.end());
    bytes_.swap(larger);
    return end() - used;
  }
  RansStream finish(const std::uint8_t* at) {
    const auto begin = static_cast<std::size_t>(at - bytes_.data());
    return {std::move(bytes_), begin};
  }

 private:
  std::vector<std::uint8_t> bytes_;
};

// What follows is a state and a place that loops keep in registers: bytes may alias anything, so
// whoever is not inlined gets a copy of them.

// The count of groups and the groups are puts of their own; a narrow put may take two words.
template <class Form>
constexpr std::size_t kMostBytes = (kMaxGroups + 2) * (sizeof(typename Form::Word) == 1 ? 2 : 4);

template <class Form>
struct Writing {
  typename Form::State x;
  std::uint8_t* at;
};

template <class Form>
inline void emit(Writing<Form>& to, typename Form::State frequency) {
  while (to.x >= ((Form::kLow >> kRansBits) << kWordBits<Form>)*frequency) {
    const auto word = static_cast<typename Form::Word>(to.x);
    to.at -= sizeof word;
    std::memcpy(to.at, &word, sizeof word);
    to.x = static_cast<typename Form::State>(to.x >> kWordBits<Form>);
  }
}

template <class Form>
void put_group(Writing<Form>& to, std::uint64_t group) {
  emit(to, typename Form::State{1} << (kRansBits - kGroupBits));
  to.x = to.x << kGroupBits | static_cast<typename Form::State>(group);
}

template <class Form>
__attribute__((noinline)) Writing<Form> put_escaped(Writing<Form> to, std::int64_t value,
                                                    std::int64_t escape) {
  const auto code = static_cast<std::uint64_t>(value < 0 ? -2 * value - 1 : 2 * (value - escape));
  unsigned groups = 0;
  while (code >> (kGroupBits * groups) != 0) ++groups;
  for (unsigned group = groups; group > 0; --group) {
    put_group(to, code >> (kGroupBits * (group - 1)) & 15U);
  }
  put_group(to, groups);
  return to;
}

template <class Form>
inline Writing<Form> put(Writing<Form> to, const RansTables& tables, std::int32_t symbol,
                         std::int32_t index) {
  using State = typename Form::State;
  const RansTables::Row& row = tables.row(index);
  const std::int64_t value = std::int64_t{symbol} - row.offset;
  std::uint32_t bin = row.escape;
  if (value >= 0 && value < row.escape) {
    bin = static_cast<std::uint32_t>(value);
  } else {
    to = put_escaped(to, value, row.escape);
  }
  const RansTables::Bin it = tables.bins(row)[bin];
  const RansTables::Divisor& divisor = tables.divisors(row)[bin];
  emit(to, State{it.frequency});
  const auto quotient = static_cast<State>(
      high_product(std::uint64_t{to.x} << 1, divisor.reciprocal) >> divisor.shift);
  to.x = (quotient << kRansBits) + (to.x - quotient * it.frequency) + it.start;
  return to;
}

template <class Form>
struct Reading {
  typename Form::State x;
  const std::uint8_t* at;
  const std::uint8_t* end;
  bool ended;  // zeros were read beyond the end
};

template <class Form>
inline void refill(Reading<Form>& from) {
  while (from.x < Form::kLow) {
    typename Form::Word word = 0;
    if (from.end - from.at >= static_cast<std::ptrdiff_t>(sizeof word)) {
      std::memcpy(&word, from.at, sizeof word);
      from.at += sizeof word;
    } else {
      from.ended = true;
    }
    from.x = static_cast<typename Form::State>(from.x << kWordBits<Form> | word);
  }
}

template <class Form>
std::uint32_t get_group(Reading<Form>& from) {
  const auto bits = static_cast<std::uint32_t>(from.x & 15U);
  from.x >>= kGroupBits;
  refill(from);
  return bits;
}

template <class Form>
struct Escaped {
  Reading<Form> from;
  std::int32_t symbol;
};

template <class Form>
__attribute__((noinline)) Escaped<Form> get_escaped(Reading<Form> from,
                                                    const RansTables::Row& row) {
  const std::uint32_t groups = get_group(from);
  if (groups > kMaxGroups) {
    broken_stream("BadEscape", "an escaped value has at most 9 groups of bits, this one has ",
                  groups);
  }
  std::int64_t code = 0;
  for (std::uint32_t i = 0; i < groups; ++i) {
    code |= std::int64_t{get_group(from)} << (kGroupBits * i);
  }
  const std::int64_t value = (code & 1) != 0 ? -(code / 2) - 1 : code / 2 + row.escape;
  const std::int64_t symbol = value + row.offset;
  if (symbol != static_cast<std::int32_t>(symbol)) {
    broken_stream("BadEscape", "an escaped value does not fit 32 bits");
  }
  return {from, static_cast<std::int32_t>(symbol)};
}

template <class Form>
inline std::int32_t get(Reading<Form>& from, const RansTables& tables, std::int32_t index) {
  const RansTables::Row& row = tables.row(index);
  const RansTables::Bin* bins = tables.bins(row);
  const auto count = static_cast<std::uint32_t>(from.x & (kRansTotal - 1));
  std::uint32_t bin = tables.bucket(index, count);
  while (count >= std::uint32_t{bins[bin].start} + bins[bin].frequency) ++bin;
  from.x = bins[bin].frequency * (from.x >> kRansBits) + count - bins[bin].start;
  refill(from);
  if (bin != row.escape) return static_cast<std::int32_t>(bin) + row.offset;
  const Escaped<Form> escaped = get_escaped(from, row);
  from = escaped.from;
  return escaped.symbol;
}

template <class Form, int ways>
RansStream encode(const RansTables& tables, Span<const std::int32_t> symbols,
                  Span<const std::int32_t> indexes) {
  using State = typename Form::State;
  BackBuffer buffer(symbols.size() / 2 + kMostBytes<Form> * (kChunk + ways) + sizeof(State) * ways);
  std::uint8_t* at = buffer.end();
  State states[ways];
  for (State& x : states) x = Form::kLow;
  const auto step = [&](State& x, std::size_t i) {
    const Writing<Form> to = put<Form>({x, at}, tables, symbols[i], indexes[i]);
    x = to.x;
    at = to.at;
  };
  std::size_t i = symbols.size();
  for (; i % ways != 0; --i) step(states[(i - 1) % ways], i - 1);
  while (i > 0) {
    const std::size_t stop = i - std::min<std::size_t>(i, kChunk);
    at = buffer.reserve(at, kMostBytes<Form> * kChunk + sizeof(State) * ways);
    for (; i > stop; i -= ways) {
      for (int way = ways - 1; way >= 0; --way) {
        step(states[way], i - ways + static_cast<std::size_t>(way));
      }
    }
  }
  for (int way = ways - 1; way >= 0; --way) {
    at -= sizeof(State);
    std::memcpy(at, &states[way], sizeof(State));
  }
  return buffer.finish(at);
}

template <class Form>
typename Form::State first_state(Reading<Form>& from) {
  typename Form::State x = 0;
  if (from.end - from.at < static_cast<std::ptrdiff_t>(sizeof x)) {
    broken_stream("Truncated", "the stream ends inside its states");
  }
  std::memcpy(&x, from.at, sizeof x);
  from.at += sizeof x;
  if (!valid<Form>(x)) broken_stream("BadState", "the stream begins with what is no state");
  return x;
}

void check_words(bool ended) {
  if (ended) broken_stream("Truncated", "the stream ends before its last symbol");
}

template <class Form, int ways>
void decode(const RansTables& tables, Span<const std::uint8_t> stream,
            Span<const std::int32_t> indexes, Span<std::int32_t> symbols) {
  using State = typename Form::State;
  Reading<Form> from = {0, stream.begin(), stream.end(), false};
  State states[ways];
  for (State& x : states) x = first_state(from);
  const auto step = [&](State& x, std::size_t i) {
    from.x = x;
    symbols[i] = get(from, tables, indexes[i]);
    x = from.x;
  };
  const std::size_t whole = symbols.size() - symbols.size() % ways;
  std::size_t i = 0;
  while (i < whole) {
    const std::size_t stop = std::min<std::size_t>(whole, i + kChunk);
    for (; i < stop; i += ways) {
      for (std::size_t way = 0; way < ways; ++way) step(states[way], i + way);
    }
    check_words(from.ended);
  }
  for (; i < symbols.size(); ++i) step(states[i % ways], i);
  check_words(from.ended);
  if (from.at != from.end) {
    broken_stream("TrailingBytes", "bytes that follow the last symbol: ", from.end - from.at);
  }
  for (const State x : states) {
    if (x == Form::kLow) continue;
    broken_stream("BadState",
                  "a state is not where writing began: the stream or its tables are others");
  }
}

void check(const RansTables& tables, const RansForm& form, std::size_t symbols,
           Span<const std::int32_t> indexes) {
  if (form.ways != 1 && form.ways != 2 && form.ways != 4) {
    throw std::invalid_argument("ways must be 1, 2 or 4, got " + std::to_string(form.ways));
  }
  if (symbols != indexes.size()) {
    throw std::invalid_argument("every symbol has an index of its table, got " +
                                std::to_string(symbols) + " symbols and " +
                                std::to_string(indexes.size()) + " indexes");
  }
  const auto rows = static_cast<std::uint32_t>(tables.rows());
  const auto wrong = std::find_if(indexes.begin(), indexes.end(), [rows](std::int32_t index) {
    return static_cast<std::uint32_t>(index) >= rows;
  });
  if (wrong == indexes.end()) return;
  throw std::invalid_argument("indexes[" + std::to_string(wrong - indexes.begin()) + "] is " +
                              std::to_string(*wrong) + ", but the tables have " +
                              std::to_string(rows) + " rows");
}

}  // namespace

RansStream rans_encode(const RansTables& tables, const RansForm& form,
                       Span<const std::int32_t> symbols, Span<const std::int32_t> indexes) {
  check(tables, form, symbols.size(), indexes);
  switch (form.ways * 2 + (form.wide ? 1 : 0)) {
    case 2:
      return encode<NarrowState, 1>(tables, symbols, indexes);
    case 3:
      return encode<WideState, 1>(tables, symbols, indexes);
    case 4:
      return encode<NarrowState, 2>(tables, symbols, indexes);
    case 5:
      return encode<WideState, 2>(tables, symbols, indexes);
    case 8:
      return encode<NarrowState, 4>(tables, symbols, indexes);
    default:
      return encode<WideState, 4>(tables, symbols, indexes);
  }
}

void rans_decode(const RansTables& tables, const RansForm& form, Span<const std::uint8_t> stream,
                 Span<const std::int32_t> indexes, Span<std::int32_t> symbols) {
  check(tables, form, symbols.size(), indexes);
  switch (form.ways * 2 + (form.wide ? 1 : 0)) {
    case 2:
      return decode<NarrowState, 1>(tables, stream, indexes, symbols);
    case 3:
      return decode<WideState, 1>(tables, stream, indexes, symbols);
    case 4:
      return decode<NarrowState, 2>(tables, stream, indexes, symbols);
    case 5:
      return decode<WideState, 2>(tables, stream, indexes, symbols);
    case 8:
      return decode<NarrowState, 4>(tables, stream, indexes, symbols);
    default:
      return decode<WideState, 4>(tables, stream, indexes, symbols);
  }
}

}  // namespace edge
