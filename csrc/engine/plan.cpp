#include "engine/plan.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <unordered_set>

#include "engine/ops.h"

namespace edge {

namespace {

constexpr std::uint64_t kHeaderBytes = 64, kTensorBytes = 48, kOpBytes = 16, kCheckBytes = 32;
constexpr std::uint64_t kMaxFileBytes = std::uint64_t{256} << 20;
constexpr std::uint64_t kMaxMemoryBytes = std::uint64_t{4} << 30;
constexpr std::uint32_t kMaxRecords = 65536, kMaxWords = 1048576, kMaxNamesBytes = 4 << 20;
constexpr std::uint64_t kAlignment = 64;

std::string text(std::uint64_t number) { return std::to_string(number); }

template <class T>
T read_at(Span<const std::uint8_t> bytes, std::uint64_t at) {
  T value;  // every caller's range was checked by read_header()
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// Counts of the header and where each section begins.
struct Header {
  std::uint32_t n_tensors, n_ops, n_operands, n_attributes, names_bytes;
  std::uint64_t arena_bytes, constants_bytes, workspace_bytes;
  std::uint64_t ops, operands, attributes, names, constants;
};

void require_cap(std::uint64_t value, std::uint64_t cap, const char* rule, const char* what) {
  require(value <= cap, rule,
          std::string(what) + " is " + text(value) + ", the cap is " + text(cap));
}

void check_caps(const Header& h) {
  require_cap(h.n_tensors, kMaxRecords, "TooManyTensors", "the number of tensors");
  require_cap(h.n_ops, kMaxRecords, "TooManyOps", "the number of operations");
  require_cap(h.n_operands, kMaxWords, "TooManyOperands", "the number of operands");
  require_cap(h.n_attributes, kMaxWords, "TooManyAttributes", "the number of attributes");
  require_cap(h.names_bytes, kMaxNamesBytes, "NamesTooLong", "the length of the names");
  require_cap(h.arena_bytes, kMaxMemoryBytes, "ArenaTooLarge", "arena_bytes");
  require_cap(h.workspace_bytes, kMaxMemoryBytes, "WorkspaceTooLarge", "workspace_bytes");
  require_cap(h.constants_bytes, kMaxFileBytes, "ConstantsTooLarge", "constants_bytes");
}

Header read_header(Span<const std::uint8_t> bytes) {
  require_cap(bytes.size(), kMaxFileBytes, "FileTooLarge", "the size of the plan file");
  require(bytes.size() >= kHeaderBytes + kCheckBytes, "Truncated",
          "a plan file has at least 96 bytes, this one " + text(bytes.size()));
  require(std::memcmp(bytes.data(), "EDGEPLAN", 8) == 0, "BadMagic",
          "not a plan file: it does not begin with EDGEPLAN");
  const auto version = read_at<std::uint32_t>(bytes, 8);
  require(version == 1, "BadVersion",
          "plan version " + text(version) + "; this build reads version 1");
  const auto file_bytes = read_at<std::uint64_t>(bytes, 56);
  require(
      file_bytes <= bytes.size(), "Truncated",
      "the header says " + text(file_bytes) + " bytes, only " + text(bytes.size()) + " are here");
  require(file_bytes == bytes.size(), "FileSizeMismatch",
          "the header says " + text(file_bytes) + " bytes, the file has " + text(bytes.size()));
  Header h{};
  h.n_tensors = read_at<std::uint32_t>(bytes, 12);
  h.n_ops = read_at<std::uint32_t>(bytes, 16);
  h.n_operands = read_at<std::uint32_t>(bytes, 20);
  h.n_attributes = read_at<std::uint32_t>(bytes, 24);
  h.names_bytes = read_at<std::uint32_t>(bytes, 28);
  h.arena_bytes = read_at<std::uint64_t>(bytes, 32);
  h.constants_bytes = read_at<std::uint64_t>(bytes, 40);
  h.workspace_bytes = read_at<std::uint64_t>(bytes, 48);
  check_caps(h);
  h.ops = kHeaderBytes + kTensorBytes * h.n_tensors;  // caps keep every sum far below 2^64
  h.operands = h.ops + kOpBytes * h.n_ops;
  h.attributes = h.operands + std::uint64_t{4} * h.n_operands;
  h.names = h.attributes + std::uint64_t{4} * h.n_attributes;
  h.constants = (h.names + h.names_bytes + kAlignment - 1) / kAlignment * kAlignment;
  const std::uint64_t sum = h.constants + h.constants_bytes + kCheckBytes;
  require(sum == file_bytes, "SectionsMismatch",
          "the sections take " + text(sum) + " bytes, the file has " + text(file_bytes));
  for (std::uint64_t at = h.names + h.names_bytes; at < h.constants; ++at) {
    require(bytes[static_cast<std::size_t>(at)] == 0, "BadPadding",
            "the padding after the names is not zero");
  }
  return h;
}

// Length of the UTF-8 sequence at `at`, 0 where there is none (overlong forms and surrogates
// included).
std::size_t utf8_length(std::string_view s, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(s[at + i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || at + length > s.size()) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0U) != 0x80U) return 0;
  }
  const unsigned second = byte(1);
  const bool wrong = (lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) ||
                     (lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F);
  return wrong ? 0 : length;
}

bool is_utf8(std::string_view s) {
  for (std::size_t at = 0; at < s.size();) {
    const std::size_t length = utf8_length(s, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

std::string read_name(Span<const std::uint8_t> bytes, const Header& h, std::uint64_t record,
                      const std::string& who) {
  const std::uint64_t begin = read_at<std::uint32_t>(bytes, record + 4);
  const std::uint64_t length = read_at<std::uint32_t>(bytes, record + 8);
  require(begin + length <= h.names_bytes, "BadName",
          who + ": its name lies outside the names section");
  std::string name(reinterpret_cast<const char*>(bytes.data() + h.names + begin),
                   static_cast<std::size_t>(length));
  require(is_utf8(name), "BadName", who + ": its name is not UTF-8");
  require(name.find('\0') == std::string::npos, "BadName", who + ": its name holds a zero byte");
  return name;
}

void read_dims(Span<const std::uint8_t> bytes, std::uint64_t record, const std::string& who,
               Tensor& tensor) {
  const auto ndim = read_at<std::uint8_t>(bytes, record + 1);
  require(ndim <= 6, "BadShape", who + " has " + text(ndim) + " dimensions, the cap is 6");
  for (std::uint64_t d = 0; d < 6; ++d) {
    const auto dim = read_at<std::uint32_t>(bytes, record + 24 + 4 * d);
    if (d >= ndim) {
      require(dim == 0, "BadShape", who + ": an unused dimension is " + text(dim) + ", must be 0");
      continue;
    }
    require(dim >= 1, "BadShape", who + ": dimension " + text(d) + " is 0");
    tensor.dims.push_back(dim);
    tensor.elements = checked_mul(tensor.elements, dim, "BadShape");
  }
  tensor.bytes = checked_mul(tensor.elements, dtype_bytes(tensor.dtype), "BadShape");
}

Tensor read_tensor(Span<const std::uint8_t> bytes, const Header& h, std::uint32_t number) {
  const std::uint64_t record = kHeaderBytes + kTensorBytes * number;
  const std::string who = "tensor " + text(number);
  Tensor tensor;
  const auto dtype = read_at<std::uint8_t>(bytes, record);
  require(dtype >= 1 && dtype <= 3, "BadDtype",
          who + ": dtype " + text(dtype) + " is none of 1, 2, 3");
  const auto role = read_at<std::uint8_t>(bytes, record + 2);
  require(role <= 7, "BadRole", who + ": role " + text(role) + " is not in 0..7");
  require(read_at<std::uint8_t>(bytes, record + 3) == 0 &&
              read_at<std::uint32_t>(bytes, record + 12) == 0,
          "BadReserved", who + ": a reserved field is not zero");
  tensor.dtype = static_cast<Dtype>(dtype);
  tensor.role = static_cast<Role>(role);
  tensor.name = read_name(bytes, h, record, who);
  tensor.offset = read_at<std::uint64_t>(bytes, record + 16);
  read_dims(bytes, record, who, tensor);
  require(tensor.offset % kAlignment == 0, "Misaligned",
          who + ": offset " + text(tensor.offset) + " is no multiple of 64");
  const bool constant = tensor.role == Role::constant;
  const std::uint64_t end = checked_add(tensor.offset, tensor.bytes, "BadOffset");
  const std::uint64_t room = constant ? h.constants_bytes : h.arena_bytes;
  require(end <= room, "BadOffset",
          who + " ends at byte " + text(end) + " of " + text(room) +
              (constant ? " of the constants" : " of the arena"));
  if (tensor.role == Role::scalar) {
    require(tensor.dims.empty(), "BadShape", who + ": a scalar has no dimensions");
    require(tensor.dtype == Dtype::float32, "BadDtype", who + ": a scalar is float32");
  }
  const bool slot = tensor.role != Role::temporary && !constant;
  require(!slot || !tensor.name.empty(), "BadName",
          who + ": only temporaries and constants may have no name");
  return tensor;
}

void check_names(const std::vector<Tensor>& tensors) {
  std::unordered_set<std::string_view> seen;
  for (const Tensor& tensor : tensors) {
    if (tensor.role == Role::temporary || tensor.name.empty()) continue;
    require(seen.insert(tensor.name).second, "DuplicateName",
            "two tensors are named '" + tensor.name + "'");
  }
}

// Slots own their bytes: no other slot and no temporary may lie on them.
void check_overlap(const std::vector<Tensor>& tensors) {
  std::vector<const Tensor*> slots, temporaries;
  for (const Tensor& tensor : tensors) {
    if (tensor.role == Role::constant) continue;
    (tensor.role == Role::temporary ? temporaries : slots).push_back(&tensor);
  }
  std::sort(slots.begin(), slots.end(),
            [](const Tensor* a, const Tensor* b) { return a->offset < b->offset; });
  for (std::size_t i = 1; i < slots.size(); ++i) {
    require(slots[i - 1]->offset + slots[i - 1]->bytes <= slots[i]->offset, "SlotsOverlap",
            "'" + slots[i - 1]->name + "' and '" + slots[i]->name + "' share bytes of the arena");
  }
  for (const Tensor* temporary : temporaries) {
    // The first slot that ends behind the temporary's begin; slots do not overlap, so ends are
    // sorted too.
    const auto slot = std::upper_bound(
        slots.begin(), slots.end(), temporary->offset,
        [](std::uint64_t at, const Tensor* s) { return at < s->offset + s->bytes; });
    require(slot == slots.end() || (*slot)->offset >= temporary->offset + temporary->bytes,
            "SlotsOverlap",
            "a temporary at byte " + text(temporary->offset) + " lies on '" +
                (slot == slots.end() ? "" : (*slot)->name) + "'");
  }
}

Op read_op(Span<const std::uint8_t> bytes, const Header& h, std::uint32_t number) {
  const std::uint64_t record = h.ops + kOpBytes * number;
  const std::string who = "operation " + text(number);
  Op op;
  op.code = read_at<std::uint16_t>(bytes, record);
  const std::uint64_t n_inputs = read_at<std::uint8_t>(bytes, record + 2);
  const std::uint64_t n_outputs = read_at<std::uint8_t>(bytes, record + 3);
  const std::uint64_t first_operand = read_at<std::uint32_t>(bytes, record + 4);
  const std::uint64_t first_attribute = read_at<std::uint32_t>(bytes, record + 8);
  const std::uint64_t n_attributes = read_at<std::uint16_t>(bytes, record + 12);
  require(read_at<std::uint16_t>(bytes, record + 14) == 0, "BadReserved",
          who + ": a reserved field is not zero");
  require(first_operand + n_inputs + n_outputs <= h.n_operands, "BadOperand",
          who + ": its operands lie outside the operands section");
  require(first_attribute + n_attributes <= h.n_attributes, "BadAttribute",
          who + ": its attributes lie outside the attributes section");
  for (std::uint64_t i = 0; i < n_inputs + n_outputs; ++i) {
    const auto operand = read_at<std::uint32_t>(bytes, h.operands + 4 * (first_operand + i));
    require(operand == kAbsent || operand < h.n_tensors, "BadOperand",
            who + ": operand " + text(operand) + " is no tensor of this plan");
    (i < n_inputs ? op.inputs : op.outputs).push_back(operand);
  }
  for (std::uint64_t i = 0; i < n_attributes; ++i) {
    op.attributes.push_back(read_at<std::int32_t>(bytes, h.attributes + 4 * (first_attribute + i)));
  }
  return op;
}

}  // namespace

const char* dtype_name(Dtype dtype) {
  return dtype == Dtype::float32 ? "float32" : dtype == Dtype::int32 ? "int32" : "uint8";
}

std::uint64_t dtype_bytes(Dtype dtype) { return dtype == Dtype::uint8 ? 1 : 4; }

Plan parse_plan(Span<const std::uint8_t> bytes) {
  const Header h = read_header(bytes);
  Plan plan;
  plan.arena_bytes = h.arena_bytes;
  plan.constants_bytes = h.constants_bytes;
  plan.workspace_bytes = h.workspace_bytes;
  plan.constants_begin = h.constants;
  plan.tensors.reserve(h.n_tensors);
  for (std::uint32_t i = 0; i < h.n_tensors; ++i) plan.tensors.push_back(read_tensor(bytes, h, i));
  check_names(plan.tensors);
  check_overlap(plan.tensors);
  plan.ops.reserve(h.n_ops);
  for (std::uint32_t i = 0; i < h.n_ops; ++i) {
    plan.ops.push_back(read_op(bytes, h, i));
    check_op(plan, i);
  }
  return plan;
}

}  // namespace edge
