#include "kernels/unary.h"

#include "kernels/vmath.h"

namespace edge {
namespace EDGE_ISA {

namespace {

// Vectors, and a last one that is filled up: the same arithmetic for every element wherever it
// lies, so results do not depend on the number of workers.
template <Vec (*F)(Vec)>
void map_vectors(const float* x, float* y, Index size) {
  Index i = 0;
  for (; i + kLanes <= size; i += kLanes) store(y + i, F(load(x + i)));
  if (i == size) return;
  float lanes[EDGE_VECTOR_FLOATS] = {};
  for (Index j = 0; j < size - i; ++j) lanes[j] = x[i + j];
  store(lanes, F(load(lanes)));
  for (Index j = 0; j < size - i; ++j) y[i + j] = lanes[j];
}

Vec vector_exp(Vec x) { return exp_of(x); }
Vec vector_log(Vec x) { return log_of(x); }
Vec vector_tanh(Vec x) { return tanh_of(x); }
Vec vector_sigmoid(Vec x) { return sigmoid_of(x); }
Vec vector_erf(Vec x) { return erf_of(x); }
Vec vector_softplus(Vec x) { return softplus_of(x); }
Vec vector_reciprocal(Vec x) { return 1.0F / x; }
Vec vector_abs(Vec x) { return abs_of(x); }
Vec vector_sign(Vec x) {
  const Vec one = splat(1.0F);
  return select(x > Vec{}, one, select(x < Vec{}, -one, x));  // zeros and NaN as they are
}

template <float (*F)(float)>
void map_scalars(const float* x, float* y, Index size) {
  EDGE_INDEPENDENT
  for (Index i = 0; i < size; ++i) y[i] = F(x[i]);
}

float scalar_sqrt(float x) { return __builtin_sqrtf(x); }
float scalar_floor(float x) { return __builtin_floorf(x); }
float scalar_ceil(float x) { return __builtin_ceilf(x); }
float scalar_round(float x) { return __builtin_rintf(x); }  // the default mode rounds half to even
float scalar_sin(float x) { return __builtin_sinf(x); }
float scalar_cos(float x) { return __builtin_cosf(x); }

// In the order of UnaryFunction.
using Map = void (*)(const float*, float*, Index);
constexpr Map kMaps[kUnaryFunctions] = {
    map_vectors<vector_exp>,        map_vectors<vector_log>,      map_scalars<scalar_sqrt>,
    map_vectors<vector_reciprocal>, map_vectors<vector_tanh>,     map_vectors<vector_sigmoid>,
    map_vectors<vector_erf>,        map_vectors<vector_softplus>, map_vectors<vector_abs>,
    map_vectors<vector_sign>,       map_scalars<scalar_floor>,    map_scalars<scalar_ceil>,
    map_scalars<scalar_round>,      map_scalars<scalar_sin>,      map_scalars<scalar_cos>,
};

}  // namespace

void unary(const MapArgs& args, const Worker& worker) {
  const Share share = share_of(ceil_div(args.size, kLanes), worker);
  const Index begin = share.begin * kLanes, end = smaller(args.size, share.end * kLanes);
  if (begin < end)
    kMaps[static_cast<std::int32_t>(args.function)](args.x + begin, args.y + begin, end - begin);
}

}  // namespace EDGE_ISA
}  // namespace edge
