// Copies a convolution's source into zero-padded planes (see conv.h). Internal linkage.
#pragma once

#include "kernels/conv_plan.h"
#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

struct PackRange {
  Index image, images, channel,
      channels;  // channel counts from the source's first, over all groups
  Index row;     // first output row of the band
};

EDGE_INLINE Index tap_offset(const conv_plan::Problem& p, const conv_plan::Layout& layout,
                             Index channel, Index u, Index v) {
  const Index plane = u % p.v.planes * p.h.planes + v % p.h.planes;
  return channel * layout.channel + plane * layout.plane +
         conv_plan::offset(p.v, u) * layout.pitch + conv_plan::offset(p.h, v);
}

// to[q] = from[start + q * step], zero where that is outside [0, size).
static void pack_row(const float* from, Index size, Index start, Index step, Index count,
                     float* to) {
  // First q with start + q * step >= 0, and first with >= size.
  const Index begin = smaller(count, start >= 0 ? 0 : ceil_div(-start, step));
  const Index end = larger(begin, smaller(count, start >= size ? 0 : ceil_div(size - start, step)));
  for (Index q = 0; q < begin; ++q) to[q] = 0.0F;
  if (step == 1) {
    for (Index q = begin; q < end; ++q) to[q] = from[start + q];
  } else {
    for (Index q = begin; q < end; ++q) to[q] = from[start + q * step];
  }
  for (Index q = end; q < count; ++q) to[q] = 0.0F;
}

// All rows of one image, channel and plane.
static void pack_image(const conv_plan::Problem& p, const conv_plan::Layout& layout,
                       const float* from, Index row, Index plane_v, Index plane_h, float* to) {
  const Index column = p.h.start + conv_plan::residue(p.h, plane_h);
  for (Index r = 0; r < layout.band_rows; ++r) {
    const Index at = (row + r) * p.v.step + p.v.start + conv_plan::residue(p.v, plane_v);
    const bool inside = at >= 0 && at < p.v.source;
    // A row outside is one that starts behind the last column: zeros.
    pack_row(from + (inside ? at * p.h.source : 0), p.h.source, inside ? column : p.h.source,
             p.h.step, layout.pitch, to + r * layout.pitch);
  }
}

static void pack_planes(const conv_plan::Problem& p, const conv_plan::Layout& layout,
                        const float* source, Index all_channels, const PackRange& range,
                        float* to) {
  const Index image_floats = p.v.source * p.h.source;
  for (Index c = 0; c < range.channels; ++c) {
    for (Index plane = 0; plane < p.v.planes * p.h.planes; ++plane) {
      for (Index n = 0; n < range.images; ++n) {
        const float* from =
            source + ((range.image + n) * all_channels + range.channel + c) * image_floats;
        pack_image(p, layout, from, range.row, plane / p.h.planes, plane % p.h.planes,
                   to + c * layout.channel + plane * layout.plane + n * layout.image);
      }
      // Behind the last image of a short block lie old bytes; d_w multiplies the first of them by
      // zero.
      const Index used = range.images * layout.image;
      float* unused = to + c * layout.channel + plane * layout.plane + used;
      for (Index i = 0; i < smaller(layout.plane - used, kMaxTileColumns); ++i) unused[i] = 0.0F;
    }
  }
  // What vectors read beyond the last channel must be finite: d_w multiplies it by zero.
  float* behind = to + range.channels * layout.channel;
  for (Index i = 0; i < 2 * kMaxTileColumns; ++i) behind[i] = 0.0F;
}

}  // namespace EDGE_ISA
}  // namespace edge
