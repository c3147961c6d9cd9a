// A whole step on a small network: nothing allocated, nothing read that the step did not write, any
// number of threads alike, a wrong label refused before anything moves.
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "engine/engine.h"
#include "plan_builder.h"

namespace {
std::atomic<long> allocations{0};
}

// Not inline: GCC 12 would see free() meet a pointer of operator new and warn.
__attribute__((noinline)) void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* p) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace {

using build::Bytes;

constexpr std::uint32_t kBatch = 23;

float* floats(const edge::Engine& engine, const char* name) {
  return reinterpret_cast<float*>(engine.data(*engine.find(name)));
}

void fill(const edge::Engine& engine, const char* name, unsigned seed) {
  const edge::Tensor& tensor = *engine.find(name);
  float* to = floats(engine, name);
  for (std::uint64_t i = 0; i < tensor.elements; ++i) {
    seed = seed * 1664525U + 1013904223U;
    to[i] = static_cast<float>(seed >> 8) / 16777216.0F - 0.5F;
  }
}

void set_up(const edge::Engine& engine) {
  fill(engine, "x", 1);
  fill(engine, "w", 2);
  fill(engine, "fc", 3);
  fill(engine, "bias", 4);
  *floats(engine, "lr") = 0.05F;
  *floats(engine, "d_loss") = 1.0F;
  auto* labels = reinterpret_cast<std::int32_t*>(engine.data(*engine.find("y")));
  for (std::uint32_t i = 0; i < kBatch; ++i) labels[i] = static_cast<std::int32_t>(i % 6) - 1;
}

std::vector<float> trained(const edge::Engine& engine) {
  std::vector<float> out;
  for (const char* name : {"w", "momentum/w", "fc", "bias", "loss"}) {
    const float* from = floats(engine, name);
    out.insert(out.end(), from, from + engine.find(name)->elements);
  }
  return out;
}

std::vector<float> after_steps(const Bytes& plan, int threads, const std::string& isa,
                               bool poison) {
  edge::Engine engine(build::span(plan), threads, isa);
  set_up(engine);
  for (int step = 0; step < 5; ++step) {
    if (poison) engine.poison();
    CHECK(!engine.step().has_value());
  }
  return trained(engine);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void threads_and_poison_change_nothing(const Bytes& plan) {
  for (const edge::Kernels* kernels : edge::available_kernels()) {
    const std::vector<float> once = after_steps(plan, 1, kernels->isa, false);
    CHECK(same_bits(once, after_steps(plan, 3, kernels->isa, false)));
    CHECK(same_bits(once, after_steps(plan, 2, kernels->isa, true)));
    for (const float value : once) CHECK(std::isfinite(value));
  }
}

void instruction_sets_agree(const Bytes& plan) {
  const std::vector<float> first =
      after_steps(plan, 1, edge::available_kernels().front()->isa, false);
  const std::vector<float> last =
      after_steps(plan, 1, edge::available_kernels().back()->isa, false);
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(std::fabs(first[i] - last[i]) < 1e-5F);
}

void a_step_allocates_nothing(const Bytes& plan) {
  for (const int threads : {1, 3}) {
    edge::Engine engine(build::span(plan), threads, "auto");
    set_up(engine);
    engine.step();
    const long before = allocations.load();
    for (int step = 0; step < 10; ++step) engine.step();
    CHECK(allocations.load() == before);
  }
}

void a_wrong_label_is_named_and_nothing_moves(const Bytes& plan) {
  edge::Engine engine(build::span(plan), 1, "auto");
  set_up(engine);
  engine.step();
  const std::vector<float> before = trained(engine);
  auto* labels = reinterpret_cast<std::int32_t*>(engine.data(*engine.find("y")));
  for (const std::int32_t label : {5, -2, 2147483647}) {
    labels[7] = label;
    const auto refused = engine.step();
    CHECK(refused.has_value() && refused->row == 7 && refused->label == label &&
          refused->classes == 5);
    CHECK(refused.has_value() && std::string(refused->tensor) == "y");
    CHECK(same_bits(before, trained(engine)));
  }
}

// Data end where the pages end, less than the alignment before the page without access.
void a_block_ends_at_its_guard() {
  const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  for (const std::uint64_t bytes :
       {std::uint64_t{1}, std::uint64_t{64}, page - 1, page, page + 1}) {
    const edge::Block block(bytes);
    const auto begin = reinterpret_cast<std::uintptr_t>(block.data());
    CHECK(begin % 64 == 0);
    CHECK((begin + (bytes + 63) / 64 * 64) % page == 0);
    CHECK(block.data()[bytes - 1] == 0);
  }
}

void wrong_settings_are_refused(const Bytes& plan) {
  for (const int threads : {0, -1, 257}) {
    bool refused = false;
    try {
      edge::Engine engine(build::span(plan), threads, "auto");
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
  std::string message;
  try {
    edge::Engine engine(build::span(plan), 1, "mmx");
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  CHECK(message.find(edge::available_kernels().front()->isa) != std::string::npos);
}

}  // namespace

int main() {
  const Bytes plan = build::small_network(kBatch);
  threads_and_poison_change_nothing(plan);
  instruction_sets_agree(plan);
  a_step_allocates_nothing(plan);
  a_wrong_label_is_named_and_nothing_moves(plan);
  a_block_ends_at_its_guard();
  wrong_settings_are_refused(plan);
  return check::finish();
}
