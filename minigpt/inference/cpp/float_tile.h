// A few rows of x times one or several of W in float32. Each number is one sum in the same order,
// whatever the number of rows.

#pragma once

#include <cstdint>
#include <cstring>

namespace float32 {

#if defined(__AVX512F__)
constexpr int LANES = 16, MOST = 4;  // rows of x; 4 · 2 sums in 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8, MOST = 4;  // 4 · 2 in 16
#else
constexpr int LANES = 4, MOST = 4;
#endif
constexpr int SUMS = 2;      // of a number, that do not wait for one another
constexpr int STREAMS = 4;   // of W, for one row of x: memory is read fastest in a few long streams
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

// Adds N rows of x, K apart, times R of W, `apart` apart, each of `count` numbers, to the numbers
// to[n * step + r * next].
template <int N, int R>
static void tile(
    const float* x, const float* w, int64_t K, int64_t apart, int64_t count, float* to, int64_t step,
    int64_t next) {
  Floats sums[R][N][SUMS] = {};
  const auto add = [&](int64_t k, int64_t width, int i) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Floats numbers = load(w + r * apart + k, width);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[r][n][i] += load(x + n * K + k, width) * numbers;
    }
  };
  int64_t k = 0;
  for (; k + SUMS * LANES <= count; k += SUMS * LANES)
#pragma GCC unroll 4
    for (int i = 0; i < SUMS; ++i) add(k + i * LANES, LANES, i);
  for (; k + LANES <= count; k += LANES) add(k, LANES, 0);
  if (k < count) add(k, count - k, 0);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
      to[n * step + r * next] += sum_of<LANES>(sums[r][n][0] + sums[r][n][1]);
}

}  // namespace float32
