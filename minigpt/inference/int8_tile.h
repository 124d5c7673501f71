// A few rows of x times a group of rows of W, both int8, summed in 32 bits: by VNNI, AVX2, NEON or plain
// C++, which all give the same sums. kernels.cpp packs W and calls tile_of().

#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

// Processors multiply four bytes of W at a time with four of x and add the products to 32 bits, for 16
// rows of W at once. So W is stored in groups of 16 rows, of each row four numbers in turn:
// (groups, K/4, 16, 4); and where VNNI needs an unsigned factor, 128 (ABOVE) above its value.
constexpr int64_t ROWS = 16;

#if defined(__AVX512VNNI__)
constexpr int32_t ABOVE = 128;
constexpr int GROUPS = 2, MOST = 8;  // a tile's sums: 2 · 8 of 32 registers
struct Sums {
  __m512i all = _mm512_setzero_si512();
  inline void add(const uint8_t* w, int32_t four) {
    all = _mm512_dpbusd_epi32(all, _mm512_loadu_si512(w), _mm512_set1_epi32(four));
  }
};
#elif defined(__AVXVNNI__)
constexpr int32_t ABOVE = 128;
constexpr int GROUPS = 1, MOST = 6;  // 6 · 2 of 16 registers
struct Sums {
  __m256i low = _mm256_setzero_si256(), high = low;
  inline void add(const uint8_t* w, int32_t four) {
    const __m256i x = _mm256_set1_epi32(four);
    const auto* from = reinterpret_cast<const __m256i*>(w);
    low = _mm256_dpbusd_avx_epi32(low, _mm256_loadu_si256(from), x);
    high = _mm256_dpbusd_avx_epi32(high, _mm256_loadu_si256(from + 1), x);
  }
};
#elif defined(__AVX2__)
// maddubs adds two products in 16 bits. With |x| as the unsigned factor and W with the sign of x they
// are at most 2 · 127 · 127 and do not saturate.
constexpr int32_t ABOVE = 0;
constexpr int GROUPS = 1, MOST = 4;
struct Sums {
  __m256i low = _mm256_setzero_si256(), high = low;
  static inline __m256i products(const __m256i* w, __m256i x) {
    const __m256i signed_w = _mm256_sign_epi8(_mm256_loadu_si256(w), x);
    return _mm256_madd_epi16(
        _mm256_maddubs_epi16(_mm256_abs_epi8(x), signed_w), _mm256_set1_epi16(1));
  }
  inline void add(const uint8_t* w, int32_t four) {
    const __m256i x = _mm256_set1_epi32(four);
    const auto* from = reinterpret_cast<const __m256i*>(w);
    low = _mm256_add_epi32(low, products(from, x));
    high = _mm256_add_epi32(high, products(from + 1, x));
  }
};
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int32_t ABOVE = 0;
constexpr int GROUPS = 1, MOST = 6;  // 6 · 4 of 32 registers
struct Sums {
  int32x4_t sums[4] = {};
  inline void add(const uint8_t* w, int32_t four) {
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
    for (int i = 0; i < 4; ++i)
      sums[i] = vdotq_s32(sums[i], vreinterpretq_s8_u8(vld1q_u8(w + 16 * i)), x);
  }
};
#else  // for the compiler to vectorise
constexpr int32_t ABOVE = 0;
constexpr int GROUPS = 1, MOST = 1;
struct Sums {
  int32_t sums[ROWS] = {};
  inline void add(const uint8_t* w, int32_t four) {
    int8_t x[4];
    std::memcpy(x, &four, sizeof x);
    const auto* from = reinterpret_cast<const int8_t*>(w);
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < 4; ++j) sums[i] += from[4 * i + j] * x[j];
  }
};
#endif

// N rows of x (K bytes apart) with GROUPS groups of W → sums (N, GROUPS · ROWS).
template <int N>
static void tile(const int8_t* x, const uint8_t* w, int64_t K, int32_t* to) {
  Sums sums[N][GROUPS];
  for (int64_t k = 0; k < K; k += 4)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      int32_t four;
      std::memcpy(&four, x + n * K + k, sizeof four);
      for (int g = 0; g < GROUPS; ++g) sums[n][g].add(w + (g * K + k) * ROWS, four);
    }
  std::memcpy(to, sums, sizeof sums);
}

// tile<n>, n from 1 to N.
template <int N>
static void tile_of(int64_t n, const int8_t* x, const uint8_t* w, int64_t K, int32_t* to) {
  if constexpr (N > 1)
    if (n < N) return tile_of<N - 1>(n, x, w, K, to);
  tile<N>(x, w, K, to);
}
