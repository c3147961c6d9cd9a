// edge_runtime._core: what Python sees. Every argument is checked here once; views keep their
// engine alive.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <limits>
#include <memory>

#include "bindings/bind.h"
#include "core/cpu.h"
#include "engine/engine.h"

namespace py = pybind11;

namespace edge {
namespace {

Span<const std::uint8_t> span_of(const py::bytes& bytes) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(bytes.ptr(), &data, &size) != 0) throw py::error_already_set();
  return {reinterpret_cast<const std::uint8_t*>(data), static_cast<std::size_t>(size)};
}

py::dict describe_tensor(const Tensor& tensor) {
  py::dict out;
  out["name"] = tensor.name;
  out["dtype"] = dtype_name(tensor.dtype);
  out["shape"] = tensor.dims;
  out["role"] = static_cast<int>(tensor.role);
  out["offset"] = tensor.offset;
  out["bytes"] = tensor.bytes;
  return out;
}

py::list operand_list(const std::vector<std::uint32_t>& numbers) {
  py::list out;
  for (const std::uint32_t number : numbers) {
    out.append(number == kAbsent ? py::object(py::none()) : py::object(py::int_(number)));
  }
  return out;
}

py::dict describe(const py::bytes& bytes, bool whole) {
  const Plan plan = parse_plan(span_of(bytes));
  py::list tensors, ops;
  for (const Tensor& tensor : plan.tensors) {
    if (whole || tensor.role != Role::temporary) tensors.append(describe_tensor(tensor));
  }
  for (const Op& op : plan.ops) {
    if (!whole) break;
    py::dict entry;
    entry["op"] = op_info(op.code).name;
    entry["inputs"] = operand_list(op.inputs);
    entry["outputs"] = operand_list(op.outputs);
    entry["attrs"] = op.attributes;
    ops.append(entry);
  }
  py::dict out;
  out["tensors"] = tensors;
  out["ops"] = ops;
  out["arena_bytes"] = plan.arena_bytes;
  out["constants_bytes"] = plan.constants_bytes;
  out["workspace_bytes"] = plan.workspace_bytes;
  return out;
}

// A tensor that exists by its shape alone, with the dtype its place in the operation asks for.
Tensor tensor_of(const std::vector<std::int64_t>& shape, Dtype dtype) {
  Tensor tensor;
  require(shape.size() <= 6, "BadShape", "a shape has at most 6 dimensions");
  for (const std::int64_t dim : shape) {
    require(dim >= 1 && dim <= std::numeric_limits<std::uint32_t>::max(), "BadShape",
            "a dimension must be in 1..2^32-1");
    tensor.elements = checked_mul(tensor.elements, static_cast<std::uint64_t>(dim), "BadShape");
  }
  tensor.dims = shape;
  tensor.dtype = dtype;
  tensor.role = Role::batch;
  tensor.bytes = checked_mul(tensor.elements, dtype_bytes(dtype), "BadShape");
  return tensor;
}

Dtype dtype_of_operand(Opcode code, std::size_t operand,
                       const std::vector<std::int32_t>& attributes) {
  const bool labels = (code == Opcode::softmax_xent || code == Opcode::softmax_xent_grad ||
                       code == Opcode::sampled_softmax) &&
                      operand == 1;
  const bool places =
      (code == Opcode::gather || code == Opcode::scatter_add || code == Opcode::argminmax) &&
      operand == 1;
  if (labels || places || (code == Opcode::topk && operand == 2)) return Dtype::int32;
  const bool index =
      (code == Opcode::maxpool && operand == 2) || (code == Opcode::maxpool_grad && operand == 1);
  if (!index) return Dtype::float32;
  const bool wide = attributes.size() == 10 && std::int64_t{attributes[8]} * attributes[9] > 256;
  return wide ? Dtype::int32 : Dtype::uint8;
}

using Shapes = std::vector<std::optional<std::vector<std::int64_t>>>;

std::uint64_t workspace_bytes(std::uint16_t opcode, const Shapes& shapes,
                              const std::vector<std::int32_t>& attributes) {
  const OpInfo& info = op_info(opcode);
  const auto code = static_cast<Opcode>(opcode);
  // An operation of any number of operands says first how many.
  const bool any = info.any_count && attributes.size() >= 2 && attributes[0] >= 1 &&
                   attributes[1] >= 1 && static_cast<std::size_t>(attributes[0]) <= info.n_inputs &&
                   static_cast<std::size_t>(attributes[1]) <= info.n_outputs;
  const std::size_t n_inputs = any ? static_cast<std::size_t>(attributes[0]) : info.n_inputs;
  const std::size_t wanted =
      n_inputs + (any ? static_cast<std::size_t>(attributes[1]) : info.n_outputs);
  require(shapes.size() == wanted, "BadOperand",
          std::string(info.name) + " takes " + std::to_string(wanted) +
              " operands (None for absent ones), got " + std::to_string(shapes.size()));
  std::vector<Tensor> tensors(wanted);
  Operands operands;
  for (std::size_t i = 0; i < wanted; ++i) {
    const bool input = i < n_inputs;
    const unsigned optional =
        input ? info.optional_inputs >> i : info.optional_outputs >> (i - n_inputs);
    require(shapes[i].has_value() || (optional & 1U) != 0, "BadOperand",
            std::string(info.name) + ": operand " + std::to_string(i) + " must not be None");
    if (!shapes[i].has_value()) continue;
    tensors[i] = tensor_of(*shapes[i], dtype_of_operand(code, i, attributes));
    Operand& operand = input ? operands.in[i] : operands.out[i - n_inputs];
    operand.tensor = &tensors[i];
    tensors[i].offset = std::uint64_t{i} << 40;  // each somewhere else
  }
  if (code == Opcode::sgd || code == Opcode::adamw ||
      code == Opcode::blend) {  // in place by nature
    operands.out[0] = operands.in[0];
    operands.out[1] = operands.in[3];
    operands.out[2] = operands.in[4];
  } else if (code == Opcode::gemm_sgd) {
    operands.out[0] = operands.in[2];
    operands.out[1] = operands.in[4];
  }
  operands.n_inputs = n_inputs;
  operands.n_outputs = wanted - n_inputs;
  operands.attributes = {attributes.data(), attributes.size()};
  return prepare(code, operands, *available_kernels().front()).scratch_bytes;
}

py::dict opcodes() {
  py::dict out;
  for (const OpInfo& op : all_ops()) out[op.name] = op.code;
  return out;
}

py::dict info() {
  py::list available;
  for (const Kernels* kernels : available_kernels()) available.append(kernels->isa);
  py::dict out;
  out["isa"] = choose_kernels("auto").isa;
  out["available"] = available;
#if defined(__clang__)
  out["compiler"] = "clang " __clang_version__;
#else
  out["compiler"] = "gcc " __VERSION__;
#endif
  return out;
}

// Engine with a latch: two steps at once would run two programs in one arena.
struct PyEngine : Engine {
  PyEngine(const py::bytes& plan, int threads, const std::string& isa)
      : Engine(span_of(plan), threads, isa) {}
  std::atomic_flag stepping = ATOMIC_FLAG_INIT;
};

py::dtype numpy_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
      return py::dtype::of<float>();
    case Dtype::int32:
      return py::dtype::of<std::int32_t>();
    case Dtype::uint8:
      return py::dtype::of<std::uint8_t>();
  }
  throw std::logic_error("a dtype that the parser let through");
}

py::array view(const py::object& self, const std::string& name) {
  const auto& engine = self.cast<const PyEngine&>();
  const Tensor* tensor = engine.find(name);
  if (tensor == nullptr)
    throw py::key_error("the plan has no tensor named '" + name + "' outside its temporaries");
  py::array array(numpy_dtype(tensor->dtype), tensor->dims, engine.data(*tensor), self);
  if (tensor->role == Role::constant) array.attr("setflags")(py::arg("write") = false);
  return array;
}

void step(PyEngine& engine) {
  if (engine.stepping.test_and_set())
    throw std::runtime_error("another thread is inside step() of this engine");
  std::optional<LabelOutOfRange> wrong;
  {
    const py::gil_scoped_release release;
    wrong = engine.step();
  }
  engine.stepping.clear();
  if (!wrong) return;
  const std::string where = "row " + std::to_string(wrong->row) + " of '" + wrong->tensor +
                            "' is " + std::to_string(wrong->label) + "; ";
  const std::string last = std::to_string(wrong->classes - 1);
  throw py::value_error(wrong->index ? "IndexOutOfRange: " + where + "indices are 0.." + last +
                                           ", or -1 for zeros"
                                     : "LabelOutOfRange: " + where + "labels are classes 0.." +
                                           last + ", or -1 for a row to leave out");
}

void release(PyEngine& engine) {
  if (engine.stepping.test_and_set())
    throw std::runtime_error("another thread is inside step() of this engine");
  engine.release();
  engine.stepping.clear();
}

py::array_t<double> timings(PyEngine& engine, int steps) {
  if (steps < 1 || steps > 100000)
    throw py::value_error("a profile takes 1 to 100,000 steps, asked for " + std::to_string(steps));
  if (engine.stepping.test_and_set())
    throw std::runtime_error("another thread is inside step() of this engine");
  std::vector<double> times_s;
  {
    const py::gil_scoped_release release;
    times_s = engine.timings(steps);
  }
  engine.stepping.clear();
  return py::array_t<double>(
      {static_cast<py::ssize_t>(steps), static_cast<py::ssize_t>(engine.operations())},
      times_s.data());
}

// PlanError(rule, message), a ValueError, so that a program reads args[0] and a person the whole.
PYBIND11_CONSTINIT py::gil_safe_call_once_and_store<py::object> plan_error;

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const PlanError& error) {
    const py::tuple args = py::make_tuple(error.rule(), error.what());
    PyErr_SetObject(plan_error.get_stored().ptr(), args.ptr());
  }
}

}  // namespace
}  // namespace edge

PYBIND11_MODULE(_core, m) {
  using edge::PyEngine;
  m.doc() = "The plan reader, the interpreter and the kernels of Edge Runtime.";
  edge::plan_error.call_once_and_store_result([] {
    return py::reinterpret_steal<py::object>(PyErr_NewExceptionWithDoc(
        "edge_runtime._core.PlanError",
        "A plan broke a rule of docs/plan-format.md; args are (rule, message).", PyExc_ValueError,
        nullptr));
  });
  m.attr("PlanError") = edge::plan_error.get_stored();
  py::register_exception_translator(edge::translate);

  m.def("describe", &edge::describe, py::arg("plan").noconvert(), py::arg("whole") = true,
        "Checks a plan (all but its SHA-256) and returns what is in it, with or without its "
        "temporaries and operations.");
  m.def("workspace_bytes", &edge::workspace_bytes, py::arg("opcode"), py::arg("shapes"),
        py::arg("attrs"),
        "Scratch of one operation per thread; shapes of inputs then outputs, None where absent.");
  m.def("opcodes", &edge::opcodes, "The number of every operation in the plan format, by name.");
  m.def("info", &edge::info, "The instruction set in use, those available here, and the compiler.");

  py::class_<PyEngine>(m, "Engine", "One plan bound to one block of memory.")
      .def(py::init<const py::bytes&, int, const std::string&>(), py::arg("plan").noconvert(),
           py::arg("threads").noconvert() = 1, py::arg("isa") = "auto")
      .def("view", &edge::view, py::arg("name"),
           "A writable array over a named tensor; keeps the engine alive.")
      .def("step", &edge::step, "Runs the plan once, without the GIL and without allocating.")
      .def("timings", &edge::timings, py::arg("steps"),
           "Seconds of every operation in every step (steps, operations); trains as step() does.")
      .def("release", &edge::release,
           "Gives the memory of temporaries and scratch back to the system until the next step.")
      .def("poison", &PyEngine::poison,
           "Fills temporaries and scratch with NaN; a step must not notice.")
      .def_property_readonly("arena_bytes", [](const PyEngine& e) { return e.plan().arena_bytes; })
      .def_property_readonly("workspace_bytes",
                             [](const PyEngine& e) { return e.plan().workspace_bytes; })
      .def_property_readonly("isa", &PyEngine::isa)
      .def_property_readonly("threads", &PyEngine::threads);

  edge::bind_workspace(m);
  edge::bind_selection(m);
  edge::bind_low_rank(m);
  edge::bind_sampled_softmax(m);
  edge::bind_coders(m);
  edge::bind_quantizers(m);
  edge::bind_fold(m);
}
