#!/bin/sh
# `make fuzz` needs Clang with libFuzzer. Prints the compiler, installing it when that is possible here.
set -eu
find_clang() {
    for name in clang++ clang++-21 clang++-20 clang++-19 clang++-18 clang++-17 clang++-16; do
        if command -v "$name" >/dev/null 2>&1 &&
            echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
            "$name" -x c++ -fsanitize=fuzzer,address - -o /dev/null 2>/dev/null; then
            echo "$name"
            exit 0
        fi
    done
}
find_clang
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Clang with libFuzzer is missing: installing it with apt-get" >&2
    packages="clang-19 libclang-rt-19-dev"
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends $packages) >/dev/null 2>&1 || true
    find_clang
fi
echo "fuzzing needs Clang with libFuzzer (install it with: sudo apt-get install clang-19 libclang-rt-19-dev)" >&2
exit 1
