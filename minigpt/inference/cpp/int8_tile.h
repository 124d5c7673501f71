// A few rows of x times a few of W, both int8, summed in 32 bits: by VNNI, AVX2, NEON or plain C++, which
// all give the same sums. kernels.cpp packs W.

#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

namespace int8 {

// Processors multiply four bytes of W at a time with four of x and add the products to 32 bits, for a
// tile of 16 rows of W at once. So W is stored in tiles, of each row four numbers in turn:
// (tiles, K/4, ROWS, 4); and where VNNI needs an unsigned factor, 128 (ABOVE) above its value.
constexpr int ROWS = 16;

#if defined(__AVX512VNNI__)
constexpr int32_t ABOVE = 128;
constexpr int MOST = 16;  // rows of x: 16 sums of 32 registers
using Weights = __m512i;
static inline Weights load(const uint8_t* w) { return _mm512_loadu_si512(w); }
struct Sums {
  __m512i all = _mm512_setzero_si512();
  inline void add(const Weights& w, int32_t four) {
    all = _mm512_dpbusd_epi32(all, w, _mm512_set1_epi32(four));
  }
  inline void store(int32_t* to) const { _mm512_storeu_si512(to, all); }
};
#elif defined(__AVX2__)
struct Halves {
  __m256i low, high;
};
static inline Halves halves_at(const uint8_t* w) {
  const auto* from = reinterpret_cast<const __m256i*>(w);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
static inline void store_at(int32_t* to, __m256i low, __m256i high) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to) + 1, high);
}
#if defined(__AVXVNNI__)
constexpr int32_t ABOVE = 128;
constexpr int MOST = 6;  // 6 · 2 of 16 registers
using Weights = Halves;
static inline Weights load(const uint8_t* w) { return halves_at(w); }
struct Sums {
  __m256i low = _mm256_setzero_si256(), high = low;
  inline void add(const Weights& w, int32_t four) {
    const __m256i x = _mm256_set1_epi32(four);
    low = _mm256_dpbusd_avx_epi32(low, w.low, x);
    high = _mm256_dpbusd_avx_epi32(high, w.high, x);
  }
  inline void store(int32_t* to) const { store_at(to, low, high); }
};
#else
// maddubs adds two products in 16 bits. With |W| as the unsigned factor and x with the sign of W they
// are at most 2 · 127 · 127 and do not saturate.
constexpr int32_t ABOVE = 0;
constexpr int MOST = 4;  // 4 · 2 of 16 registers, beside 4 of W
struct Weights {
  Halves values, sizes;
};
static inline Weights load(const uint8_t* w) {
  const Halves values = halves_at(w);
  return {values, {_mm256_abs_epi8(values.low), _mm256_abs_epi8(values.high)}};
}
struct Sums {
  __m256i low = _mm256_setzero_si256(), high = low;
  static inline __m256i products(__m256i value, __m256i size, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, value));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  inline void add(const Weights& w, int32_t four) {
    const __m256i x = _mm256_set1_epi32(four);
    low = _mm256_add_epi32(low, products(w.values.low, w.sizes.low, x));
    high = _mm256_add_epi32(high, products(w.values.high, w.sizes.high, x));
  }
  inline void store(int32_t* to) const { store_at(to, low, high); }
};
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int32_t ABOVE = 0;
constexpr int MOST = 6;  // 6 · 4 of 32 registers
struct Weights {
  int8x16_t parts[4];
};
static inline Weights load(const uint8_t* w) {
  Weights all;
  for (int i = 0; i < 4; ++i) all.parts[i] = vreinterpretq_s8_u8(vld1q_u8(w + 16 * i));
  return all;
}
struct Sums {
  int32x4_t parts[4] = {};
  inline void add(const Weights& w, int32_t four) {
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
    for (int i = 0; i < 4; ++i) parts[i] = vdotq_s32(parts[i], w.parts[i], x);
  }
  inline void store(int32_t* to) const {
    for (int i = 0; i < 4; ++i) vst1q_s32(to + 4 * i, parts[i]);
  }
};
#else  // for the compiler to vectorise
constexpr int32_t ABOVE = 0;
constexpr int MOST = 1;
using Weights = const int8_t*;
static inline Weights load(const uint8_t* w) { return reinterpret_cast<const int8_t*>(w); }
struct Sums {
  int32_t all[ROWS] = {};
  inline void add(Weights w, int32_t four) {
    int8_t x[4];
    std::memcpy(x, &four, sizeof x);
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < 4; ++j) all[i] += w[4 * i + j] * x[j];
  }
  inline void store(int32_t* to) const { std::memcpy(to, all, sizeof all); }
};
#endif

// N rows of x (K bytes apart) with a tile of W → (N, ROWS).
template <int N>
static void tile(const int8_t* x, const uint8_t* w, int64_t K, int32_t* to) {
  Sums sums[N];
  for (int64_t k = 0; k < K; k += 4) {
    if (N > 1) __builtin_prefetch(w + (K + k) * ROWS);  // the next tile
    const Weights weights = load(w + k * ROWS);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      int32_t four;
      std::memcpy(&four, x + n * K + k, sizeof four);
      sums[n].add(weights, four);
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) sums[n].store(to + n * ROWS);
}

}  // namespace int8
