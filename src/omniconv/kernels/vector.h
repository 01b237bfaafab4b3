// What the kernels share: functions compiled for several processors, and vectors of 64 bytes.

#pragma once

#include <cstdint>

// Hot loops are named functions marked CLONES; what they call is marked INLINE, so that it is
// compiled anew in each clone. GCC never clones a lambda. The processor chooses when the library is
// loaded; -DOMNICONV_ARCH="x86-64-v3", say, leaves one form only, so that a test can compare them.
#if defined(OMNICONV_ARCH)
#define CLONES __attribute__((target("arch=" OMNICONV_ARCH)))
#elif defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int64_t count = 16;
  typedef int32_t Int;
  typedef float Value __attribute__((vector_size(64)));
  typedef int32_t Index __attribute__((vector_size(64)));
};

template <>
struct Lanes<double> {
  static constexpr int64_t count = 8;
  typedef int64_t Int;
  typedef double Value __attribute__((vector_size(64)));
  typedef int64_t Index __attribute__((vector_size(64)));
};

template <class T>
using Value = typename Lanes<T>::Value;
template <class T>
using Index = typename Lanes<T>::Index;

}  // namespace
