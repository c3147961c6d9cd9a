// Writes plan files for tests. The SHA-256 at the end is left zero: it is Python that compares it.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "engine/plan.h"

namespace build {

using Bytes = std::vector<std::uint8_t>;

template <class T>
void put(Bytes& to, T value) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(&value);
  to.insert(to.end(), bytes, bytes + sizeof value);
}

class PlanBuilder {
 public:
  std::uint32_t tensor(const std::string& name, const std::vector<std::uint32_t>& dims,
                       edge::Role role, edge::Dtype dtype = edge::Dtype::float32) {
    std::uint64_t bytes = edge::dtype_bytes(dtype);
    for (const std::uint32_t dim : dims) bytes *= dim;
    const std::uint8_t head[4] = {static_cast<std::uint8_t>(dtype),
                                  static_cast<std::uint8_t>(dims.size()),
                                  static_cast<std::uint8_t>(role), 0};
    tensors_.insert(tensors_.end(), head, head + 4);
    put(tensors_, static_cast<std::uint32_t>(names_.size()));
    put(tensors_, static_cast<std::uint32_t>(name.size()));
    put(tensors_, std::uint32_t{0});
    put(tensors_, arena_bytes_);
    for (std::size_t d = 0; d < 6; ++d) put(tensors_, d < dims.size() ? dims[d] : std::uint32_t{0});
    names_.insert(names_.end(), name.begin(), name.end());
    arena_bytes_ += (bytes + 63) / 64 * 64;
    return n_tensors_++;
  }

  void op(std::uint16_t code, const std::vector<std::uint32_t>& inputs,
          const std::vector<std::uint32_t>& outputs,
          const std::vector<std::int32_t>& attributes = {}) {
    put(ops_, code);
    put(ops_, static_cast<std::uint8_t>(inputs.size()));
    put(ops_, static_cast<std::uint8_t>(outputs.size()));
    put(ops_, static_cast<std::uint32_t>(operands_.size() / 4));
    put(ops_, static_cast<std::uint32_t>(attributes_.size() / 4));
    put(ops_, static_cast<std::uint16_t>(attributes.size()));
    put(ops_, std::uint16_t{0});
    for (const std::uint32_t t : inputs) put(operands_, t);
    for (const std::uint32_t t : outputs) put(operands_, t);
    for (const std::int32_t a : attributes) put(attributes_, a);
    ++n_ops_;
  }

  Bytes seal(std::uint64_t workspace_bytes) const {
    Bytes body;
    for (const Bytes* part : {&tensors_, &ops_, &operands_, &attributes_, &names_}) {
      body.insert(body.end(), part->begin(), part->end());
    }
    body.resize((body.size() + 63) / 64 * 64);
    Bytes file;
    for (const char c : {'E', 'D', 'G', 'E', 'P', 'L', 'A', 'N'})
      file.push_back(static_cast<std::uint8_t>(c));
    put(file, std::uint32_t{1});
    put(file, n_tensors_);
    put(file, n_ops_);
    put(file, static_cast<std::uint32_t>(operands_.size() / 4));
    put(file, static_cast<std::uint32_t>(attributes_.size() / 4));
    put(file, static_cast<std::uint32_t>(names_.size()));
    put(file, arena_bytes_);
    put(file, std::uint64_t{0});
    put(file, workspace_bytes);
    put(file, static_cast<std::uint64_t>(64 + body.size() + 32));
    file.insert(file.end(), body.begin(), body.end());
    file.resize(file.size() + 32);
    return file;
  }

 private:
  Bytes tensors_, ops_, operands_, attributes_, names_;
  std::uint64_t arena_bytes_ = 0;
  std::uint32_t n_tensors_ = 0, n_ops_ = 0;
};

inline edge::Span<const std::uint8_t> span(const Bytes& bytes) {
  return {bytes.data(), bytes.size()};
}

// Convolution, pooling, classifier, loss and every gradient: one training step of a very small
// network.
inline Bytes small_network(std::uint32_t batch) {
  using edge::Dtype;
  using edge::Role;
  const std::int32_t half = 0x3F000000, one = 0x3F800000;  // bits of 0.5 and 1
  PlanBuilder b;
  const auto temporary = [&](const std::vector<std::uint32_t>& dims, Dtype dtype = Dtype::float32) {
    return b.tensor("", dims, Role::temporary, dtype);
  };
  const auto x = b.tensor("x", {batch, 1, 9, 11}, Role::batch),
             lr = b.tensor("lr", {}, Role::scalar);
  const auto y = b.tensor("y", {batch}, Role::batch, Dtype::int32),
             loss = b.tensor("loss", {}, Role::output);
  const auto one_tensor = b.tensor("d_loss", {}, Role::frozen);
  const auto w = b.tensor("w", {3, 1, 3, 3}, Role::trained),
             v = b.tensor("momentum/w", {3, 1, 3, 3}, Role::state);
  const auto fc = b.tensor("fc", {5, 60}, Role::trained),
             bias = b.tensor("bias", {5}, Role::trained);
  const std::vector<std::int32_t> same = {1, 1, 1, 1, 1, 1, 1, 1, 1, 0},
                                  pool = {2, 2, 0, 0, 0, 0, 1, 1, 2, 2};
  const auto c = temporary({batch, 3, 9, 11}), r = temporary({batch, 3, 9, 11}),
             p = temporary({batch, 3, 4, 5});
  const auto index = temporary({batch, 3, 4, 5}, Dtype::uint8), flat = temporary({batch, 60});
  const auto logits = temporary({batch, 5}), probs = temporary({batch, 5}),
             d_logits = temporary({batch, 5});
  const auto d_fc = temporary({5, 60}), d_bias = temporary({5}), d_flat = temporary({batch, 60});
  const auto d_p = temporary({batch, 3, 4, 5}), d_r = temporary({batch, 3, 9, 11}),
             d_c = temporary({batch, 3, 9, 11});
  const auto d_w = temporary({3, 1, 3, 3}), d_x = temporary({batch, 1, 9, 11});
  b.op(2, {x, w, edge::kAbsent}, {c}, same);
  b.op(5, {c}, {r});
  b.op(7, {r}, {p, index}, pool);
  b.op(19, {p}, {flat});
  b.op(1, {flat, fc, bias}, {logits}, {0, 1, 0});
  b.op(16, {logits, y}, {loss, probs});
  b.op(17, {probs, y, one_tensor}, {d_logits});
  b.op(1, {d_logits, flat, edge::kAbsent}, {d_fc}, {1, 0, 0});
  b.op(14, {d_logits}, {d_bias}, {1, one});
  b.op(1, {d_logits, fc, edge::kAbsent}, {d_flat}, {0, 0, 0});
  b.op(19, {d_flat}, {d_p});
  b.op(8, {d_p, index}, {d_r}, pool);
  b.op(6, {d_r, r}, {d_c});
  b.op(4, {d_c, x}, {d_w}, same);
  b.op(3, {d_c, w}, {d_x}, same);
  b.op(18, {w, d_w, lr, v}, {w, v}, {half, 0, 1});
  b.op(18, {fc, d_fc, lr, edge::kAbsent}, {fc, edge::kAbsent}, {0, half, 0});
  b.op(18, {bias, d_bias, lr, edge::kAbsent}, {bias, edge::kAbsent}, {0, 0, 0});
  return b.seal(1 << 20);
}

}  // namespace build
