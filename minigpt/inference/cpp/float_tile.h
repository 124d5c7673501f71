// A few rows of x times one of W in float32: memory is read fastest from end to end. Each number is one
// sum in the same order, whatever the number of rows.

#pragma once

#include <cstdint>
#include <cstring>

namespace float32 {

#if defined(__AVX512F__)
constexpr int LANES = 16, MOST = 4;  // rows of x; 4 · 4 sums in 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8, MOST = 3;  // 3 · 4 in 16
#else
constexpr int LANES = 4, MOST = 3;
#endif
constexpr int SUMS = 4;      // that do not wait for one another
constexpr int64_t BLOCK = 1024;  // numbers in a row: MOST rows of x fit into the first cache

template <int N>
struct Vector {
  typedef float type __attribute__((vector_size(4 * N)));
};
using Floats = Vector<LANES>::type;

// The first `count` numbers, then zeros.
static inline Floats load(const float* from, int64_t count = LANES) {
  Floats x = {};
  std::memcpy(&x, from, 4 * count);
  return x;
}

template <int N>
static inline float sum_of(typename Vector<N>::type x) {
  if constexpr (N == 4) {
    return (x[0] + x[2]) + (x[1] + x[3]);
  } else {
    typename Vector<N / 2>::type halves[2];
    std::memcpy(halves, &x, sizeof x);
    return sum_of<N / 2>(halves[0] + halves[1]);
  }
}

// Adds N rows of x, K apart, times a row of W, each of `count` numbers, to N numbers, `step` apart.
template <int N>
static void tile(
    const float* x, const float* w, int64_t K, int64_t count, float* to, int64_t step) {
  Floats sums[N][SUMS] = {};
  const auto add = [&](int64_t k, int64_t width, int i) {
    const Floats numbers = load(w + k, width);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[n][i] += load(x + n * K + k, width) * numbers;
  };
  int64_t k = 0;
  for (; k + SUMS * LANES <= count; k += SUMS * LANES)
#pragma GCC unroll 4
    for (int i = 0; i < SUMS; ++i) add(k + i * LANES, LANES, i);
  for (; k + LANES <= count; k += LANES) add(k, LANES, 0);
  if (k < count) add(k, count - k, 0);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
    to[n * step] += sum_of<LANES>((sums[n][0] + sums[n][1]) + (sums[n][2] + sums[n][3]));
}

}  // namespace float32
