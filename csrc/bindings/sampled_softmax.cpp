#include "algorithms/sampled_softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "bindings/arrays.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace edge {

namespace {

using Size = py::ssize_t;

// A macro, because the message is made only where it is needed.
#define EDGE_CHECK(holds, message) \
  if (!(holds)) throw py::value_error(message)

// An optional argument that is there. Nothing is converted: what a list became would not outlive
// the reading of the arguments.
py::array array_of(const py::object& argument, const char* name) {
  if (!py::isinstance<py::array>(argument))
    throw py::type_error(std::string(name) + " must be an array");
  return py::reinterpret_borrow<py::array>(argument);
}

// Every number in low .. end - 1. The message is made only where it is needed.
void check_range(Span<const std::int32_t> numbers, std::int32_t low, Size end, const char* name) {
  const std::int32_t* bad = std::find_if(numbers.begin(), numbers.end(), [=](std::int32_t number) {
    return number < low || number >= end;
  });
  if (bad == numbers.end()) return;
  throw py::value_error(std::string(name) + " must be in " + std::to_string(low) + ".." +
                        std::to_string(end - 1) + ", at " + std::to_string(bad - numbers.begin()) +
                        " is " + std::to_string(*bad));
}

void check_finite(Span<const float> values) {
  const bool finite =
      std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
  if (!finite) throw py::value_error("correction must be finite");
}

void check_shape(const py::array& array, Size rows, Size columns, const char* name) {
  EDGE_CHECK(array.shape(0) == rows && array.shape(1) == columns,
             std::string(name) + " must be " + std::to_string(rows) + " x " +
                 std::to_string(columns) + ", is " + std::to_string(array.shape(0)) + " x " +
                 std::to_string(array.shape(1)));
}

bool overlap(const float* a, std::size_t count_a, const float* b, std::size_t count_b) {
  return a < b + count_b && b < a + count_a;
}

void read_correction(const py::object& correction, SampledSoftmaxArgs& args) {
  if (py::isinstance<py::array>(correction)) {
    const auto values = input<float>(correction, "correction", 1);
    EDGE_CHECK(static_cast<Index>(values.size()) == args.count,
               "correction must be one number or one for each of the " +
                   std::to_string(args.count) + " classes, has " + std::to_string(values.size()));
    check_finite(values);
    args.correction = values.data();
  } else {
    args.correction_of_all = correction.cast<float>();
    check_finite({&args.correction_of_all, 1});
  }
}

SampledSoftmaxArgs read_inputs(const py::array& features, const py::array& rows,
                               const py::array& labels, const py::object& classes) {
  SampledSoftmaxArgs args;
  args.features = input<float>(features, "features", 2).data();
  args.rows = input<float>(rows, "rows", 2).data();
  args.batch = features.shape(0);
  args.width = features.shape(1);
  EDGE_CHECK(args.batch >= 1 && args.width >= 1 && rows.shape(0) >= 1,
             "features and rows must have at least one row and one column");
  EDGE_CHECK(rows.shape(1) == args.width, "rows must be as wide as the features, " +
                                              std::to_string(args.width) + ", are " +
                                              std::to_string(rows.shape(1)));
  EDGE_CHECK(rows.shape(0) <= std::numeric_limits<std::int32_t>::max(), "more than 2^31-1 rows");
  args.count = rows.shape(0);
  if (!classes.is_none()) {
    const auto numbers = input<std::int32_t>(array_of(classes, "classes"), "classes", 1);
    EDGE_CHECK(numbers.size() >= 1, "classes must name at least one row");
    EDGE_CHECK(numbers.size() <= std::size_t{1} << 30, "more than 2^30 classes");
    check_range(numbers, 0, rows.shape(0), "classes");
    args.classes = numbers.data();
    args.table = rows.shape(0);
    args.count = static_cast<Index>(numbers.size());
  }
  const auto places = input<std::int32_t>(labels, "labels", 1);
  EDGE_CHECK(static_cast<Index>(places.size()) == args.batch,
             "labels must be one for each of the " + std::to_string(args.batch) +
                 " features, are " + std::to_string(places.size()));
  args.labels = places.data();
  args.all_labels = args.batch;
  return args;
}

void read_outputs(py::object& d_features, py::object& d_rows, SampledSoftmaxArgs& args,
                  std::size_t table) {
  struct Output {
    py::object& object;
    const char* name;
    Index rows;
    float** to;
  };
  for (const Output& it : {Output{d_features, "d_features", args.batch, &args.d_features},
                           Output{d_rows, "d_rows", args.count, &args.d_rows}}) {
    if (it.object.is_none()) continue;
    py::array array = array_of(it.object, it.name);
    const auto out = output<float>(array, it.name, 2);
    check_shape(array, it.rows, args.width, it.name);
    EDGE_CHECK(!overlap(out.data(), out.size(), args.features,
                        static_cast<std::size_t>(args.batch * args.width)) &&
                   !overlap(out.data(), out.size(), args.rows, table) &&
                   !(args.d_features != nullptr && it.to == &args.d_rows &&
                     overlap(out.data(), out.size(), args.d_features,
                             static_cast<std::size_t>(args.batch * args.width))),
               std::string(it.name) + " shares memory with another argument");
    *it.to = out.data();
  }
}

float run(PyWorkspace& workspace, const py::array& features, py::array& rows,
          const py::array& labels, const py::object& classes, Index positives,
          const py::object& correction, float scale, bool own_positives, const py::object& lr,
          py::object& d_features, py::object& d_rows) {
  SampledSoftmaxArgs args = read_inputs(features, rows, labels, classes);
  EDGE_CHECK(positives >= 0 && positives <= args.count, "positives must be in 0.." +
                                                            std::to_string(args.count) + ", is " +
                                                            std::to_string(positives));
  args.positives = positives;
  args.own = own_positives ? positives : 0;
  check_range({args.labels, static_cast<std::size_t>(args.batch)}, -1,
              classes.is_none() ? args.count : positives, "labels");
  EDGE_CHECK(std::isfinite(scale) && scale >= 0.0F, "scale must be finite and positive");
  args.scale = scale;
  read_correction(correction, args);
  read_outputs(d_features, d_rows, args, static_cast<std::size_t>(rows.size()));
  if (!lr.is_none()) {
    args.lr = lr.cast<float>();
    EDGE_CHECK(std::isfinite(args.lr), "lr must be finite");
    args.updated = output<float>(rows, "rows", 2).data();
    EDGE_CHECK(!overlap(args.updated, static_cast<std::size_t>(rows.size()), args.features,
                        static_cast<std::size_t>(features.size())),
               "rows share memory with the features");
  }
  float loss = 0.0F;
  args.loss = &loss;
  const Held held(workspace);
  const py::gil_scoped_release release;
  sampled_softmax(args, *held);
  return loss;
}

}  // namespace

void bind_sampled_softmax(py::module_& m) {
  m.def("sampled_softmax", &run, py::arg("workspace"), py::arg("features"), py::arg("rows"),
        py::arg("labels"), py::arg("classes") = py::none(), py::arg("positives") = 0,
        py::arg("correction") = 0.0F, py::arg("scale") = 0.0F, py::arg("own_positives") = false,
        py::arg("lr") = py::none(), py::arg("d_features") = py::none(),
        py::arg("d_rows") = py::none(),
        "Loss of linear logits over some classes; writes gradients, or moves the rows.");
}

}  // namespace edge
