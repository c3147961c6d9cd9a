// Operations that move elements: strided copies, gather and its adjoint. Their attributes are
// offsets and strides from outside, so every place they name is checked against the tensors here.
#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "engine/prepare.h"

namespace edge {

namespace {

constexpr std::size_t kFixed = 3, kPerAxis = 3;  // attributes: fill, offsets; size and two strides

struct Box {
  std::size_t ndim = 0;
  Index dims[6] = {}, x_strides[6] = {}, y_strides[6] = {};
  std::uint64_t places = 1;
};

Box read_box(Span<const std::int32_t> attributes) {
  const std::size_t words = attributes.size();
  require(words >= kFixed + kPerAxis && words <= kFixed + 6 * kPerAxis &&
              (words - kFixed) % kPerAxis == 0,
          "BadAttribute",
          "takes 3 attributes and 3 for each of 1..6 axes, got " + std::to_string(words));
  Box box;
  box.ndim = (words - kFixed) / kPerAxis;
  for (std::size_t d = 0; d < box.ndim; ++d) {
    const std::size_t at = kFixed + kPerAxis * d;
    box.dims[d] = attributes[at];
    box.x_strides[d] = attributes[at + 1];
    box.y_strides[d] = attributes[at + 2];
    require(box.dims[d] >= 1, "BadAttribute", "an axis of the box is empty");
    box.places = checked_mul(box.places, static_cast<std::uint64_t>(box.dims[d]), "BadAttribute");
  }
  return box;
}

// First and last place that a walk reaches lie in a tensor of `size` elements. Each term is below
// 2^62, and six of them below 2^65 could wrap, so the sums are checked one by one.
void require_inside(const Box& box, const Index* strides, Index offset, std::uint64_t size,
                    const char* name) {
  Index low = offset, high = offset;
  const auto limit = static_cast<Index>(size);
  for (std::size_t d = 0; d < box.ndim; ++d) {
    const Index reach = (box.dims[d] - 1) * strides[d];
    (reach < 0 ? low : high) += reach;
    require(low >= 0 && high < limit, "BadAttribute",
            std::string("the box leaves ") + name + ", which has " + std::to_string(size) +
                " elements");
  }
  require(low >= 0 && high < limit, "BadAttribute", std::string("the offset leaves ") + name);
}

// No two places of the box are one place of y: sorted by stride, each axis steps over everything
// that the smaller ones reach.
void require_distinct(const Box& box) {
  std::vector<std::size_t> order(box.ndim);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::llabs(box.y_strides[a]) < std::llabs(box.y_strides[b]);
  });
  Index reach = 0;
  for (std::size_t i = 0; i < box.ndim; ++i) {
    if (box.dims[order[i]] == 1) continue;
    const Index stride = std::llabs(box.y_strides[order[i]]);
    require(stride > reach, "BadAttribute", "two places of the box are one place of y");
    reach += (box.dims[order[i]] - 1) * stride;
  }
}

GatherArgs gather_args(const Operand& whole, const Operand& index, const Operand& part,
                       Span<const std::int32_t> attributes) {
  require_floats({&whole, &part});
  require_dtype(index, Dtype::int32, "index");
  const AxisView view = along(whole, attributes[0]);
  GatherArgs args;
  args.elements = flag(attributes[1], "elements");
  const Dims &dims = whole.tensor->dims, &places = index.tensor->dims;
  const auto axis = static_cast<std::size_t>(attributes[0]);
  Dims wanted(dims.begin(), dims.begin() + attributes[0]);
  if (args.elements) {
    require_ndim(index, dims.size(), "index");
    wanted = dims;
    wanted[axis] = places[axis];
    require_dims(index, wanted, "index");
    args.k = places[axis];
  } else {
    wanted.insert(wanted.end(), places.begin(), places.end());
    wanted.insert(wanted.end(), dims.begin() + attributes[0] + 1, dims.end());
    args.k = elements(index);
  }
  require_dims(part, wanted, "the gathered tensor");
  args.index = reinterpret_cast<const std::int32_t*>(index.data);
  args.outer = view.outer;
  args.n = view.size;
  args.inner = view.inner;
  return args;
}

}  // namespace

Call prepare_strided_copy(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &base = o.in[1], &y = o.out[0];
  require(x.tensor->dtype != Dtype::uint8, "BadDtype", "takes float32 or int32");
  require_dtype(y, x.tensor->dtype, "y");
  if (base.tensor != nullptr) {
    require_dtype(base, x.tensor->dtype, "base");
    require_dims(base, y.tensor->dims, "base");
  }
  const Box box = read_box(o.attributes);
  const Index x_offset = o.attributes[1], y_offset = o.attributes[2];
  require_inside(box, box.x_strides, x_offset, x.tensor->elements, "x");
  require_inside(box, box.y_strides, y_offset, y.tensor->elements, "y");
  require_distinct(box);
  StridedCopyArgs args;
  args.fill = static_cast<std::uint32_t>(o.attributes[0]);
  args.size = elements(y);
  args.y_offset = y_offset;
  args.covers = box.places == y.tensor->elements;
  args.ndim = static_cast<Index>(box.ndim);
  std::copy(box.dims, box.dims + 6, args.dims);
  std::copy(box.x_strides, box.x_strides + 6, args.x_strides);
  std::copy(box.y_strides, box.y_strides + 6, args.y_strides);
  if (x.data != nullptr) {
    args.x = reinterpret_cast<const std::uint32_t*>(x.data) + x_offset;
    args.y = reinterpret_cast<std::uint32_t*>(y.data);
    args.base = reinterpret_cast<const std::uint32_t*>(base.data);
  }
  return call_of(kernels.strided_copy, args, static_cast<double>(y.tensor->elements));
}

Call prepare_gather(const Operands& o, const Kernels& kernels) {
  GatherArgs args = gather_args(o.in[0], o.in[1], o.out[0], o.attributes);
  args.x = floats_in(o.in[0]);
  args.y = floats_out(o.out[0]);
  return call_of(kernels.gather, args, static_cast<double>(o.out[0].tensor->elements));
}

Call prepare_scatter_add(const Operands& o, const Kernels& kernels) {
  GatherArgs args = gather_args(o.out[0], o.in[1], o.in[0], o.attributes);
  args.x = floats_in(o.in[0]);
  args.y = floats_out(o.out[0]);
  return call_of(kernels.scatter_add, args,
                 static_cast<double>(o.out[0].tensor->elements + o.in[0].tensor->elements));
}

}  // namespace edge
