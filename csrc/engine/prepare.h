// What the checks of operations share, and one function for each kind of them. Internal to the
// engine.
#pragma once

#include <cmath>
#include <cstring>
#include <string>

#include "engine/ops.h"

namespace edge {

using Dims = std::vector<std::int64_t>;

inline std::string text(const Dims& dims) {
  std::string out = "(";
  for (std::size_t i = 0; i < dims.size(); ++i)
    out += (i == 0 ? "" : ", ") + std::to_string(dims[i]);
  return out + ")";
}

inline const float* floats_in(const Operand& operand) {
  return reinterpret_cast<const float*>(operand.data);
}
inline float* floats_out(const Operand& operand) { return reinterpret_cast<float*>(operand.data); }

inline void require_dtype(const Operand& operand, Dtype dtype, const char* name) {
  require(operand.tensor->dtype == dtype, "BadDtype",
          std::string(name) + " must be " + dtype_name(dtype) + ", is " +
              dtype_name(operand.tensor->dtype));
}

inline void require_dims(const Operand& operand, const Dims& wanted, const char* name) {
  require(operand.tensor->dims == wanted, "BadShape",
          std::string(name) + " must have shape " + text(wanted) + ", has " +
              text(operand.tensor->dims));
}

inline void require_ndim(const Operand& operand, std::size_t ndim, const char* name) {
  require(operand.tensor->dims.size() == ndim, "BadShape",
          std::string(name) + " must have " + std::to_string(ndim) + " dimensions, has shape " +
              text(operand.tensor->dims));
}

inline void require_floats(std::initializer_list<const Operand*> operands) {
  for (const Operand* operand : operands) {
    if (operand->tensor != nullptr) require_dtype(*operand, Dtype::float32, "every operand");
  }
}

inline bool flag(std::int32_t value, const char* name) {
  require(value == 0 || value == 1, "BadAttribute",
          std::string(name) + " must be 0 or 1, is " + std::to_string(value));
  return value == 1;
}

// A number of one of `count` functions.
inline std::int32_t choice(std::int32_t value, std::int32_t count, const char* name) {
  require(value >= 0 && value < count, "BadAttribute",
          std::string(name) + " must be in 0.." + std::to_string(count - 1) + ", is " +
              std::to_string(value));
  return value;
}

inline float finite(std::int32_t bits, const char* name) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  require(std::isfinite(value), "BadAttribute", std::string(name) + " must be finite");
  return value;
}

inline std::uint64_t bytes_of_floats(std::uint64_t floats) {
  return checked_mul(floats, 4, "BadShape");
}

inline double count(std::initializer_list<std::int64_t> dims) {
  double product = 1.0;
  for (const std::int64_t dim : dims) product *= static_cast<double>(dim);
  return product;
}

inline Index elements(const Operand& operand) {
  return static_cast<Index>(operand.tensor->elements);
}

template <class Args>
Call call_of(void (*kernel)(const Args&, const Worker&), const Args& args, double work,
             std::uint64_t scratch_bytes = 0) {
  return {[kernel, args](const Worker& worker) { kernel(args, worker); }, scratch_bytes, work};
}

// A tensor seen along one axis: (outer, size, inner).
struct AxisView {
  Index outer = 1, size = 1, inner = 1;
};

// Throws PlanError (BadAttribute) where the tensor has no such axis.
AxisView along(const Operand& operand, std::int32_t axis);

// The walk of a reduction of `x` over the axes of a bit mask, checked against y, which keeps or
// drops them.
ReduceArgs checked_reduction(const Operand& x, const Operand& y, std::int32_t axes);

#define EDGE_PREPARE(code, name, ...) \
  Call prepare_##name(const Operands& o, const Kernels& kernels);
EDGE_OPS(EDGE_PREPARE)
#undef EDGE_PREPARE

}  // namespace edge
