#include "kernels/pointwise.h"
#include "kernels/pointwise_grid.h"
#include "kernels/pointwise_plan.h"
#include "kernels/tile.h"
#include "kernels/vertical.h"

namespace edge {
namespace EDGE_ISA {

namespace {

constexpr int kTileChannels = 4;
#if defined(__AVX512F__)
constexpr int kTileFilters = 6;  // 24 of 32 registers hold sums
#elif defined(__aarch64__)
constexpr int kTileFilters = 4;  // 16 of 32
#else
constexpr int kTileFilters = 3;  // 12 of 16
#endif
constexpr Index kTileSums = (kTileFilters * kTileChannels + kLanes - 1) / kLanes * kLanes;

// Positions whose rows are multiplied before the next: their sums across lanes cost little beside
// them, and what all channels have of them stays in a second-level cache.
constexpr Index kChunk = 1024;

// Positions [begin, end) of every row of d_y and x in some images, and the floats between rows (one
// a channel) and between images.
struct Chunk {
  Index images, begin, end, d_y_row, x_row, d_y_image, x_image;
};

// sums[i * kTileChannels + j] = sum of d_y[i] * x[j] over the chunk: vector lanes first, then
// across lanes.
template <int FILTERS, int CHANNELS>
void dot_tile(const float* d_y, const float* x, const Chunk& c, float* sums) {
  Vec sum[FILTERS][CHANNELS] = {};
  const Index whole = c.begin + (c.end - c.begin) / kLanes * kLanes;
  // The vector that ends the chunk overlaps others: its first lanes count as zero.
  const std::int32_t skip = static_cast<std::int32_t>(kLanes - (c.end - whole));
  WidestLanes::Ints lanes;
  for (Index j = 0; j < kLanes; ++j) lanes[j] = static_cast<std::int32_t>(j);
  for (Index n = 0; n < c.images; ++n, d_y += c.d_y_image, x += c.x_image) {
    for (Index p = c.begin; p < whole; p += kLanes) {
      Vec values[CHANNELS];
      EDGE_UNROLL
      for (int j = 0; j < CHANNELS; ++j) values[j] = load(x + j * c.x_row + p);
      EDGE_UNROLL
      for (int i = 0; i < FILTERS; ++i) {
        const Vec row = load(d_y + i * c.d_y_row + p);
        EDGE_UNROLL
        for (int j = 0; j < CHANNELS; ++j) sum[i][j] += row * values[j];
      }
    }
    if (whole == c.end) continue;
    EDGE_UNROLL
    for (int i = 0; i < FILTERS; ++i) {
      const Vec loaded = load(d_y + i * c.d_y_row + c.end - kLanes);
      const Vec row = lanes >= skip ? loaded : Vec{};
      EDGE_UNROLL
      for (int j = 0; j < CHANNELS; ++j) sum[i][j] += row * load(x + j * c.x_row + c.end - kLanes);
    }
  }
  Vec all[kTileSums] = {};
  EDGE_UNROLL
  for (int i = 0; i < FILTERS; ++i) {
    EDGE_UNROLL
    for (int j = 0; j < CHANNELS; ++j) all[i * kTileChannels + j] = sum[i][j];
  }
  for (Index first = 0; first < FILTERS * kTileChannels; first += kLanes)
    store(sums + first, sum_each(all + first));
}

template <int FILTERS>
void dot_channels(Index channels, const float* d_y, const float* x, const Chunk& c, float* sums) {
  switch (channels) {
    case 1:
      return dot_tile<FILTERS, 1>(d_y, x, c, sums);
    case 2:
      return dot_tile<FILTERS, 2>(d_y, x, c, sums);
    case 3:
      return dot_tile<FILTERS, 3>(d_y, x, c, sums);
    default:
      return dot_tile<FILTERS, 4>(d_y, x, c, sums);
  }
}

void dot(Index filters, Index channels, const float* d_y, const float* x, const Chunk& c,
         float* sums) {
  switch (filters) {
#define EDGE_DOT_CASE(n) \
  case n:                \
    return dot_channels<(n) <= kTileFilters ? (n) : 1>(channels, d_y, x, c, sums)
    EDGE_DOT_CASE(1);
    EDGE_DOT_CASE(2);
    EDGE_DOT_CASE(3);
    EDGE_DOT_CASE(4);
    EDGE_DOT_CASE(5);
    EDGE_DOT_CASE(6);
#undef EDGE_DOT_CASE
    default:
      return;
  }
}

// Tiles of d_w are numbered (group, tile of filters, tile of channels).
struct Tiles {
  Index filters, channels;  // tiles of one group
};

// What one tap multiplies: every channel's row of `positions` floats in d_y and in x, from where
// they begin in the first image. Rows of neighbouring channels are d_y_row and x_row floats apart.
struct TapRows {
  const float* d_y;
  const float* x;
  float* d_w;
  Index taps;  // floats between the weights of neighbouring channels
  Index images, positions, d_y_row, x_row;
};

void add_chunk(const ConvArgs& a, const TapRows& tap, const Tiles& tiles, Share share,
               const Chunk& c, bool first) {
  alignas(64) float sums[kTileSums];
  for (Index unit = share.begin; unit < share.end; ++unit) {
    const Index group = unit / (tiles.filters * tiles.channels);
    const Index row = unit / tiles.channels % tiles.filters, column = unit % tiles.channels;
    const Index filter = a.filters * row / tiles.filters;
    const Index filters = a.filters * (row + 1) / tiles.filters - filter;
    const Index channel = a.channels * column / tiles.channels;
    const Index channels = a.channels * (column + 1) / tiles.channels - channel;
    const Index from = group * a.filters + filter;
    dot(filters, channels, tap.d_y + from * c.d_y_row,
        tap.x + (group * a.channels + channel) * c.x_row, c, sums);
    for (Index i = 0; i < filters; ++i) {
      float* to = tap.d_w + ((from + i) * a.channels + channel) * tap.taps;
      for (Index j = 0; j < channels; ++j)
        to[j * tap.taps] = (first ? 0.0F : to[j * tap.taps]) + sums[i * kTileChannels + j];
    }
  }
}

// The weights that add_rows() would write are zero.
void clear_tap(const ConvArgs& a, const TapRows& tap, const Worker& worker) {
  const Share share = share_of(a.groups * a.filters * a.channels, worker);
  for (Index i = share.begin; i < share.end; ++i) tap.d_w[i * tap.taps] = 0.0F;
}

// Adds the dot products of one run of positions to a tap's weights, or begins with them.
void add_rows(const ConvArgs& a, const TapRows& tap, const Worker& worker, bool first) {
  const Index images = larger(1, kChunk / tap.positions);
  const Index d_y_image = a.groups * a.filters * tap.d_y_row;
  const Index x_image = a.groups * a.channels * tap.x_row;
  const Tiles tiles{ceil_div(a.filters, Index{kTileFilters}),
                    ceil_div(a.channels, Index{kTileChannels})};
  const Share share = share_of(a.groups * tiles.filters * tiles.channels, worker);
  for (Index image = 0; image < tap.images; image += images) {
    TapRows part = tap;
    part.d_y += image * d_y_image;
    part.x += image * x_image;
    for (Index begin = 0; begin < tap.positions; begin += kChunk) {
      const Chunk chunk{smaller(images, tap.images - image),
                        begin,
                        smaller(begin + kChunk, tap.positions),
                        tap.d_y_row,
                        tap.x_row,
                        d_y_image,
                        x_image};
      add_chunk(a, part, tiles, share, chunk, first && image == 0 && begin == 0);
    }
  }
}

// Few positions, or strides: d_w is a product of d_y and the transposed x of all images.

// Filters that share a packed tile; a worker's unit of work.
constexpr Index kChunkFilters = 384;

// Positions [first, first + count) of all images side by side, against `channels` channels.
struct Part {
  Index group, first, count, channel, channels;
};

// Positions [at, at + count) of one plane, count <= kLanes.
Vec load_positions(const Grid& grid, const float* plane, Index at, Index count) {
  if (grid.whole()) return load_part(plane + at, count);
  alignas(64) float part[kLanes] = {};
  gather_run(grid, plane, at, count, part);
  return load(part);
}

// x of a part as [count][kTileColumns], zero beyond the last channel.
void pack_x(const ConvArgs& a, const Part& part, float* to) {
  const Grid grid = grid_of(a);
  const Index positions = a.out_height * a.out_width, plane = a.height * a.width;
  for (Index done = 0; done < part.count;) {
    const Index image = (part.first + done) / positions, at = (part.first + done) % positions;
    const Index count = smaller(smaller(positions - at, part.count - done), kLanes);
    const float* from = a.x + ((image * a.groups + part.group) * a.channels + part.channel) * plane;
    for (Index column = 0; column < kTileColumns; column += kLanes) {
      Vec square[kLanes];
      for (Index j = 0; j < kLanes; ++j) {
        const Index channel = column + j;
        square[j] = channel < part.channels
                        ? load_positions(grid, from + channel * plane, at, count)
                        : Vec{};
      }
      transpose_square(square);
      for (Index i = 0; i < count; ++i) store(to + (done + i) * kTileColumns + column, square[i]);
    }
    done += count;
  }
}

void fill_taps(const ConvArgs& a, const Part& part, Tap* taps) {
  const Index positions = a.out_height * a.out_width, image_step = a.groups * a.filters * positions;
  const Index first = part.first / positions * image_step;
  for (Index i = 0; i < part.count; ++i) {
    const Index at = part.first + i;
    taps[i] = {static_cast<std::int32_t>(at / positions * image_step - first + at % positions),
               static_cast<std::int32_t>(i * kTileColumns)};
  }
}

void add_part(const ConvArgs& a, const Part& part, Share filters, const float* x, const Tap* taps) {
  const Index positions = a.out_height * a.out_width, count = filters.end - filters.begin;
  alignas(64) float sums[kTileRows * kTileColumns];
  for (Index tile = 0; tile < row_tiles(count); ++tile) {
    const Index row = row_tile_begin(count, tile), rows = row_tile_begin(count, tile + 1) - row;
    const Index filter = part.group * a.filters + filters.begin + row;
    const float* d_y = a.w + (part.first / positions * a.groups * a.filters + filter) * positions;
    if (part.channels > kLanes) {
      tile_rows<2>(rows, d_y, positions, TableTaps{taps}, part.count, x, sums, kTileColumns);
    } else {
      tile_rows<1>(rows, d_y, positions, TableTaps{taps}, part.count, x, sums, kTileColumns);
    }
    for (Index i = 0; i < rows; ++i) {
      float* to = a.out + (filter + i) * a.channels + part.channel;
      const float* from = sums + i * kTileColumns;
      EDGE_INDEPENDENT
      for (Index j = 0; j < part.channels; ++j) to[j] = part.first == 0 ? from[j] : to[j] + from[j];
    }
  }
}

void grad_w_of_columns(const ConvArgs& a, const Worker& worker) {
  const Index all = a.images * a.out_height * a.out_width,
              chunks = ceil_div(a.filters, kChunkFilters);
  const Index tiles = ceil_div(a.channels, kTileColumns);
  const Share share = share_of(a.groups * tiles * chunks, worker);
  float* x = worker.scratch;
  Tap* taps = reinterpret_cast<Tap*>(x + smaller(all, pointwise::kGradDepth) * kTileColumns);
  for (Index unit = share.begin; unit < share.end; ++unit) {
    const Index chunk = unit % chunks, channel = unit / chunks % tiles * kTileColumns;
    const Share filters{a.filters * chunk / chunks, a.filters * (chunk + 1) / chunks};
    for (Index first = 0; first < all; first += pointwise::kGradDepth) {
      const Part part{unit / chunks / tiles, first, smaller(pointwise::kGradDepth, all - first),
                      channel, smaller(kTileColumns, a.channels - channel)};
      pack_x(a, part, x);
      fill_taps(a, part, taps);
      add_part(a, part, filters, x, taps);
    }
  }
}

}  // namespace

void pointwise_grad_w(const ConvArgs& a, const Worker& worker) {
  const Index positions = a.height * a.width;
  if (pointwise::multiplies_rows(a)) {
    add_rows(a, {a.w, a.x, a.out, 1, a.images, positions, positions, positions}, worker, true);
  } else {
    grad_w_of_columns(a, worker);
  }
}

void vertical_grad_w(const ConvArgs& a, const Worker& worker) {
  const Index d_y_row = a.out_height * a.width, x_row = a.height * a.width;
  for (Index u = 0; u < a.kernel_h; ++u) {
    // Output rows of which this tap lies inside x.
    const Index start = u * a.dilation_h - a.pad_top, span = a.height - start;
    const Index begin = smaller(a.out_height, start >= 0 ? 0 : ceil_div(-start, a.stride_h));
    const Index end = smaller(a.out_height, span <= 0 ? 0 : ceil_div(span, a.stride_h));
    // Without a stride they are one run in both planes.
    const Index run = a.stride_h == 1 ? larger(0, end - begin) : 1;
    TapRows tap{a.w, a.x, a.out + u, a.kernel_h, a.images, 0, d_y_row, x_row};
    if (begin >= end) clear_tap(a, tap, worker);
    for (Index i = begin; i < end; i += run) {
      tap.d_y = a.w + i * a.width;
      tap.x = a.x + (start + i * a.stride_h) * a.width;
      tap.positions = run * a.width;
      add_rows(a, tap, worker, i == begin);
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
