#include "kernels/conv_rows.h"

#include "kernels/channels_pack.h"
#include "kernels/tile.h"

namespace edge {
namespace EDGE_ISA {

namespace {

using conv_rows::Blocks;
using conv_rows::Phase;
using conv_rows::Problem;
using conv_rows::Span;

// A worker's scratch, and the floats from one position or tap to the next.
struct Rooms {
  float *band, *weights, *sums;
  Tap* taps;
  std::int32_t* order;  // of each tap of the kernel: the number of its first product
  float* vector;        // of each tap, one vector of weights
  Index pitch, target_pitch, columns;
};

Rooms rooms_of(const Problem& p, const Blocks& b, float* scratch) {
  Rooms r{};
  r.band = scratch;
  r.weights = r.band + conv_rows::band_floats(p, b);
  r.sums = r.weights + conv_rows::weights_floats(p, b);
  r.vector = r.sums + conv_rows::sums_floats(p, b);
  r.taps = reinterpret_cast<Tap*>(r.vector + conv_rows::taps(p) * conv_rows::kLanesStep);
  r.order = reinterpret_cast<std::int32_t*>(r.taps + p.channels * conv_rows::taps(p));
  r.pitch = conv_plan::round_up(p.channels, kLanes);
  r.target_pitch = conv_plan::round_up(b.targets, kLanes);
  r.columns = conv_rows::span_of(p.h, 0, p.h.outputs).count;
  return r;
}

// The products of one position, phase by phase, and where each tap's begin: -1 for one that nothing
// reads.
void fill_taps(const Problem& p, const Rooms& rooms) {
  for (Index tap = 0; tap < conv_rows::taps(p); ++tap) rooms.order[tap] = -1;
  Index k = 0;
  for (Index i = 0; i < conv_rows::phases(p.v) * conv_rows::phases(p.h); ++i) {
    const Phase v = conv_rows::phase_of(p.v, i / conv_rows::phases(p.h));
    const Phase h = conv_rows::phase_of(p.h, i % conv_rows::phases(p.h));
    for (Index tap = 0; tap < v.taps * h.taps; ++tap) {
      const Index t = tap / h.taps, s = tap % h.taps;
      const Index at = (t * v.tap_step * rooms.columns + s * h.tap_step) * rooms.pitch;
      const Index row = v.first_tap + t * v.tap_stride, column = h.first_tap + s * h.tap_stride;
      rooms.order[row * p.h.kernel + column] = static_cast<std::int32_t>(k);
      for (Index channel = 0; channel < p.channels; ++channel, ++k) {
        rooms.taps[k] = {static_cast<std::int32_t>(at + channel),
                         static_cast<std::int32_t>(k * rooms.target_pitch)};
      }
    }
  }
}

// The weights of targets [first, first + count) to [product][target].
void pack_weights(const RowsCorrelation& c, Index group, Index first, Index count,
                  const Rooms& rooms) {
  const Problem& p = c.problem;
  const Index taps = conv_rows::taps(p);
  for (Index target = 0; target < count; target += kLanes) {
    const float* from = c.weights + group * c.weights_per_group + (first + target) * c.row_step;
    for (Index channel = 0; channel < p.channels; ++channel) {
      to_lanes(from + channel * c.channel_step, c.row_step, smaller(kLanes, count - target),
               {1, taps, 0, 0, 0}, rooms.vector, kLanes);
      for (Index tap = 0; tap < taps; ++tap) {
        if (rooms.order[tap] < 0) continue;
        store(rooms.weights + (rooms.order[tap] + channel) * rooms.target_pitch + target,
              load(rooms.vector + tap * kLanes));
      }
    }
  }
}

// `positions` sums of `count` targets, `step` positions apart in the source.
void multiply(Index positions, Index count, const float* source, Index step, TableTaps taps,
              Index depth, const float* weights, float* sums, Index sums_step) {
  for (Index tile = 0; tile < row_tiles(positions); ++tile) {
    const Index row = row_tile_begin(positions, tile);
    const Index rows = row_tile_begin(positions, tile + 1) - row;
    const float* a = source + row * step;
    float* out = sums + row * sums_step;
    for (Index target = 0; target < count; target += kTileColumns) {
      if (count - target > kLanes) {
        tile_rows<2>(rows, a, step, taps, depth, weights + target, out + target, sums_step);
      } else {
        tile_rows<1>(rows, a, step, taps, depth, weights + target, out + target, sums_step);
      }
    }
  }
}

// One target row, phase by phase, from the band whose first row and column are given.
void multiply_row(const Problem& p, Index row, Index first_row, Index first_column, Index count,
                  const Rooms& rooms, float* sums) {
  const Index phases_v = conv_rows::phases(p.v), phases_h = conv_rows::phases(p.h);
  const Phase v = conv_rows::phase_of(p.v, row % phases_v);
  const Index from_row = v.origin + row / phases_v * v.step - first_row;
  for (Index i = 0; i < phases_h; ++i) {
    const Phase h = conv_rows::phase_of(p.h, i);
    const Index depth = v.taps * h.taps * p.channels;
    // The first product of a phase is that of its first tap.
    const Index k = depth == 0 ? 0 : rooms.order[v.first_tap * p.h.kernel + h.first_tap];
    const Index at = depth == 0 ? 0 : from_row * rooms.columns + h.origin - first_column;
    multiply(h.positions, count, rooms.band + at * rooms.pitch, h.step * rooms.pitch,
             TableTaps{rooms.taps + k}, depth, rooms.weights,
             sums + h.target_start * rooms.target_pitch, h.target_step * rooms.target_pitch);
  }
}

// Target rows [row, row + rows) of one image, and targets [first, first + count) of all groups.
void store_rows(const RowsCorrelation& c, Index image, Index row, Index rows, Index first,
                Index count, const Rooms& rooms) {
  const Problem& p = c.problem;
  const Index plane = p.v.outputs * p.h.outputs;
  const float floor = c.relu ? 0.0F : -__builtin_inff();
  float* to = c.target + (image * c.groups * p.targets + first) * plane + row * p.h.outputs;
  for (Index target = 0; target < count; target += kLanes) {
    const Index lanes = smaller(kLanes, count - target);
    const Vec bias = c.bias == nullptr ? Vec{} : load_part(c.bias + first + target, lanes);
    from_lanes(rooms.sums + target, rows * p.h.outputs, lanes, bias, floor, to + target * plane,
               plane, rooms.target_pitch);
  }
}

}  // namespace

void correlate_rows(const RowsCorrelation& c, const Blocks& blocks, const Worker& worker) {
  const Problem& p = c.problem;
  const Rooms rooms = rooms_of(p, blocks, worker.scratch);
  const Index bands = ceil_div(p.v.outputs, blocks.rows),
              row_floats = p.h.outputs * rooms.target_pitch;
  const Span across = conv_rows::span_of(p.h, 0, p.h.outputs);
  const Share share = share_of(p.images * bands, worker);
  if (share.begin == share.end) return;
  fill_taps(p, rooms);
  for (Index group = 0; group < c.groups; ++group) {
    const Planes planes{c.source,   c.groups * p.channels, p.v.source,
                        p.h.source, group * p.channels,    p.channels};
    for (Index target = 0; target < p.targets; target += blocks.targets) {
      const Index count = smaller(blocks.targets, p.targets - target);
      pack_weights(c, group, target, count, rooms);
      for (Index unit = share.begin; unit < share.end; ++unit) {
        const Index image = unit / bands, row = unit % bands * blocks.rows;
        const Index rows = smaller(blocks.rows, p.v.outputs - row);
        const Span down = conv_rows::span_of(p.v, row, rows);
        for (Index channel = 0; channel < p.channels; channel += kLanes) {
          pack_band(planes, image, channel, {down.begin, down.count, across.begin, across.count},
                    rooms.band + channel, rooms.pitch);
        }
        for (Index r = 0; r < rows; ++r) {
          multiply_row(p, row + r, down.begin, across.begin, count, rooms,
                       rooms.sums + r * row_floats);
        }
        store_rows(c, image, row, rows, group * p.targets + target, count, rooms);
      }
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
