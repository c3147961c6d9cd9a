// The parser meets bytes that nobody vouches for: every cut, every flipped byte, every word at its
// extremes.
#include <string>

#include "check.h"
#include "engine/engine.h"
#include "engine/plan.h"
#include "plan_builder.h"

namespace {

using build::Bytes;

// The rule that a plan breaks, "" where it breaks none.
std::string rule_of(const Bytes& bytes) {
  try {
    edge::parse_plan(build::span(bytes));
    return "";
  } catch (const edge::PlanError& error) {
    return error.rule();
  }
}

void every_truncation_is_refused(const Bytes& plan) {
  for (std::size_t size = 0; size < plan.size(); ++size) {
    const Bytes cut(plan.begin(), plan.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK(rule_of(cut) == "Truncated");
  }
  Bytes longer = plan;
  longer.push_back(0);
  CHECK(rule_of(longer) == "FileSizeMismatch");
}

void no_changed_byte_breaks_the_parser(const Bytes& plan) {
  std::size_t accepted = 0;
  for (std::size_t at = 0; at + 32 < plan.size(); ++at) {
    for (const unsigned change : {0x01U, 0x02U, 0x10U, 0x40U, 0x80U, 0xFFU}) {
      Bytes changed = plan;
      changed[at] = static_cast<std::uint8_t>(changed[at] ^ change);
      accepted += rule_of(changed).empty() ? 1 : 0;
    }
  }
  CHECK(accepted > 0);  // letters of names, for one
}

void extreme_words_are_refused_or_harmless(const Bytes& plan) {
  for (std::size_t at = 8; at + 36 < plan.size(); at += 4) {
    for (const std::uint32_t word :
         {0U, 1U, 0x7FFFFFFFU, 0x80000000U, 0xFFFFFFFFU, 0xFFFFU, 0x10000U}) {
      Bytes changed = plan;
      std::memcpy(changed.data() + at, &word, sizeof word);
      rule_of(changed);
    }
  }
}

// A plan that still passes after a change must also still run: its kernels stay inside their memory
// (no access behind the block's end; fuzz_plan.cpp looks at every operand's), and labels and
// pooling indices are checked by the kernels.
void changed_plans_that_pass_also_run(const Bytes& plan) {
  for (std::size_t at = 64; at + 32 < plan.size(); ++at) {
    Bytes changed = plan;
    changed[at] = static_cast<std::uint8_t>(changed[at] ^ 0x04U);
    if (!rule_of(changed).empty()) continue;
    edge::Engine engine(build::span(changed), 1, "auto");
    engine.step();
    engine.poison();
    engine.step();
  }
  CHECK(true);
}

}  // namespace

int main() {
  const Bytes plan = build::small_network(2);
  CHECK(rule_of(plan).empty());
  every_truncation_is_refused(plan);
  no_changed_byte_breaks_the_parser(plan);
  extreme_words_are_refused_or_harmless(plan);
  changed_plans_that_pass_also_run(plan);
  return check::finish();
}
