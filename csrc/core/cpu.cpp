#include "core/cpu.h"

#include <cstdlib>
#include <stdexcept>

#if defined(EDGE_HAVE_AVX2)
#include <cpuid.h>
#endif
#if defined(__arm__) && defined(EDGE_HAVE_NEON)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace edge {

namespace {
#if defined(EDGE_HAVE_AVX2)
// Conversions of float16; not every compiler's __builtin_cpu_supports knows the name.
bool ask_for_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// Asked once: on a virtual machine every CPUID leaves the guest, which takes 9 us.
bool has_f16c() {
  static const bool has = ask_for_f16c();
  return has;
}
#endif
}  // namespace

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found;
#if defined(EDGE_HAVE_PORTABLE)
  found.push_back(&portable::table());
#endif
#if defined(EDGE_HAVE_AVX2)
  // __builtin_cpu_supports also asks (XGETBV) whether the operating system saves the wide
  // registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    found.push_back(&avx2::table());
  }
#endif
#if defined(EDGE_HAVE_AVX512)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    found.push_back(&avx512::table());
  }
#endif
#if defined(EDGE_HAVE_NEON)
#if defined(__arm__)
  if ((getauxval(AT_HWCAP) & HWCAP_NEON) != 0) found.push_back(&neon::table());
#else
  found.push_back(&neon::table());
#endif
#endif
  return found;
}

const Kernels& choose_kernels(const std::string& isa) {
  const std::vector<const Kernels*> available = available_kernels();
  const char* environment = std::getenv("EDGE_ISA");
  const bool from_environment = isa == "auto" && environment != nullptr && *environment != '\0';
  const std::string wish = from_environment ? environment : isa;
  if (wish == "auto") return *available.back();
  std::string names;
  for (const Kernels* kernels : available) {
    if (wish == kernels->isa) return *kernels;
    names += names.empty() ? kernels->isa : std::string(", ") + kernels->isa;
  }
  throw std::invalid_argument("instruction set '" + wish + "'" +
                              (from_environment ? " (from EDGE_ISA)" : "") +
                              " is not available here; available: auto, " + names);
}

}  // namespace edge
