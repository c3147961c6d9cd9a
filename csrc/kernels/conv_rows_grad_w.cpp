#include "kernels/channels_pack.h"
#include "kernels/conv_rows.h"
#include "kernels/tile.h"

namespace edge {
namespace EDGE_ISA {

namespace {

using conv_rows::Blocks;
using conv_rows::Problem;
using conv_rows::Span;

// A worker's scratch: x and d_y under a band of rows, the sums as [filter][tap][channel], and where
// every position is in x and in d_y.
struct Rooms {
  float *x, *d_y, *sums;
  Tap* positions;
  Index pitch, filter_pitch, columns;
};

Rooms rooms_of(const Problem& p, const Blocks& b, float* scratch) {
  Rooms r{};
  r.x = scratch;
  r.d_y = r.x + conv_rows::band_floats(p, b);
  r.sums = r.d_y + conv_rows::sums_floats(p, b);
  r.positions = reinterpret_cast<Tap*>(r.sums + conv_rows::grad_floats(p, b));
  r.pitch = conv_plan::round_up(p.channels, kLanes);
  r.filter_pitch = conv_plan::round_up(b.targets, kLanes);
  r.columns = conv_rows::span_of(p.h, 0, p.h.outputs).count;
  for (Index i = 0; i < b.rows * p.h.outputs; ++i) {
    const Index row = i / p.h.outputs * p.v.stride, column = i % p.h.outputs * p.h.stride;
    r.positions[i] = {static_cast<std::int32_t>(i * r.filter_pitch),
                      static_cast<std::int32_t>((row * r.columns + column) * r.pitch)};
  }
  return r;
}

// sums of all filters and `columns` neighbouring floats of x (+)= d_y * x over the positions.
template <bool ADD>
void multiply(Index filters, Index columns, Index positions, const Rooms& rooms, const float* x,
              float* sums, Index sums_step) {
  const TableTaps taps{rooms.positions};
  for (Index column = 0; column < columns; column += kTileColumns) {
    for (Index tile = 0; tile < row_tiles(filters); ++tile) {
      const Index row = row_tile_begin(filters, tile);
      const Index rows = row_tile_begin(filters, tile + 1) - row;
      float* out = sums + row * sums_step + column;
      if (columns - column > kLanes) {
        tile_rows<2, ADD>(rows, rooms.d_y + row, 1, taps, positions, x + column, out, sums_step);
      } else {
        tile_rows<1, ADD>(rows, rooms.d_y + row, 1, taps, positions, x + column, out, sums_step);
      }
    }
  }
}

template <bool ADD>
void multiply_band(const Problem& p, Index filters, Index rows, const Rooms& rooms) {
  const Index taps = conv_rows::taps(p), positions = rows * p.h.outputs;
  // The taps of a row are neighbours unless they are dilated.
  const Index runs = p.h.dilation == 1 ? 1 : p.h.kernel, length = p.h.kernel / runs * rooms.pitch;
  for (Index u = 0; u < p.v.kernel; ++u) {
    for (Index run = 0; run < runs; ++run) {
      const float* x =
          rooms.x + (u * p.v.dilation * rooms.columns + run * p.h.dilation) * rooms.pitch;
      multiply<ADD>(filters, length, positions, rooms, x,
                    rooms.sums + (u * p.h.kernel + run) * rooms.pitch, taps * rooms.pitch);
    }
  }
}

void pack_channels(const Planes& planes, Index image, const conv_rows::Span& down,
                   const conv_rows::Span& across, float* to, Index pitch) {
  for (Index channel = 0; channel < planes.channels; channel += kLanes) {
    pack_band(planes, image, channel, {down.begin, down.count, across.begin, across.count},
              to + channel, pitch);
  }
}

void store_grad(const ConvArgs& a, const Problem& p, Index first, Index count, const Rooms& rooms) {
  const Index taps = conv_rows::taps(p);
  for (Index filter = 0; filter < count; ++filter) {
    for (Index channel = 0; channel < p.channels; channel += kLanes) {
      from_lanes(rooms.sums + filter * taps * rooms.pitch + channel, taps,
                 smaller(kLanes, p.channels - channel), Vec{}, -__builtin_inff(),
                 a.out + ((first + filter) * p.channels + channel) * taps, taps, rooms.pitch);
    }
  }
}

}  // namespace

// A worker takes some of the filters. Products are summed by increasing position, band by band,
// whoever does it.
void grad_w_rows(const ConvArgs& a, const Blocks& blocks, const Worker& worker) {
  const Problem p = conv_rows::forward_problem(a);
  const Index most = smaller(blocks.targets, ceil_div(p.targets, worker.count));
  const Index parts = ceil_div(p.targets, most), bands = ceil_div(p.v.outputs, blocks.rows);
  const Share share = share_of(a.groups * parts, worker);
  if (share.begin == share.end) return;
  const Rooms rooms = rooms_of(p, blocks, worker.scratch);
  const Span across = conv_rows::span_of(p.h, 0, p.h.outputs);
  for (Index unit = share.begin; unit < share.end; ++unit) {
    const Index group = unit / parts, target = unit % parts * most;
    const Index first = group * p.targets + target, count = smaller(most, p.targets - target);
    const Planes x{a.x, a.groups * p.channels, a.height, a.width, group * p.channels, p.channels};
    const Planes d_y{a.w, a.groups * p.targets, a.out_height, a.out_width, first, count};
    for (Index band = 0; band < p.images * bands; ++band) {
      const Index image = band / bands, row = band % bands * blocks.rows;
      const Index rows = smaller(blocks.rows, p.v.outputs - row);
      pack_channels(x, image, conv_rows::span_of(p.v, row, rows), across, rooms.x, rooms.pitch);
      pack_channels(d_y, image, {row, rows}, {0, p.h.outputs}, rooms.d_y, rooms.filter_pitch);
      if (band == 0) {
        multiply_band<false>(p, count, rows, rooms);
      } else {
        multiply_band<true>(p, count, rows, rooms);
      }
    }
    store_grad(a, p, first, count, rooms);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
