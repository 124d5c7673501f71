// A few rows of x in int8 times a few of W in 4 bits with a scale for each 32 numbers of a row: by VNNI,
// AVX2, NEON or plain C++. kernels.cpp packs W.

#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

namespace int4 {

// W is stored in tiles of ROWS rows. Of 32 numbers (SPAN) of a row eight are beside each other in turn,
// in four bytes: the first four in their low halves, the others in their high halves, all 8 (ABOVE)
// above their values: (tiles, K/32, 4, ROWS, 4). The scales are bfloat16: (tiles, K/32, ROWS).
constexpr int SPAN = 32, ABOVE = 8;

#if defined(__AVX512VNNI__)
constexpr int ROWS = 16, MOST = 8;  // 8 · 2 of 32 registers
using Bytes = __m512i;
using Floats = __m512;
static inline Bytes load(const uint8_t* w) { return _mm512_loadu_si512(w); }
static inline Bytes low(Bytes w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
static inline Bytes high(Bytes w) { return low(_mm512_srli_epi16(w, 4)); }
static inline Floats scales_at(const uint16_t* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
static inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
struct Sums {
  __m512i all = _mm512_setzero_si512();
  inline void add(Bytes w, int32_t four) {
    all = _mm512_dpbusd_epi32(all, w, _mm512_set1_epi32(four));
  }
  inline Floats times(Floats scales, int32_t above, Floats to) const {
    const __m512i sums = _mm512_sub_epi32(all, _mm512_set1_epi32(above));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scales, to);
  }
};
#elif defined(__AVX2__)
constexpr int ROWS = 8, MOST = 4;  // 4 · 2 of 16 registers
using Bytes = __m256i;
using Floats = __m256;
static inline Bytes load(const uint8_t* w) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
}
static inline Bytes low(Bytes w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
static inline Bytes high(Bytes w) { return low(_mm256_srli_epi16(w, 4)); }
static inline Floats scales_at(const uint16_t* from) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
static inline void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
struct Sums {  // in 16 bits, two for a row: each of 16 products of at most 15 · 127
  __m256i all = _mm256_setzero_si256();
  inline void add(Bytes w, int32_t four) {
    all = _mm256_add_epi16(all, _mm256_maddubs_epi16(w, _mm256_set1_epi32(four)));
  }
  inline Floats times(Floats scales, int32_t above, Floats to) const {
    const __m256i wide = _mm256_madd_epi16(all, _mm256_set1_epi16(1));
    const __m256i sums = _mm256_sub_epi32(wide, _mm256_set1_epi32(above));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scales, to);
  }
};
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int ROWS = 4, MOST = 8;  // 8 · 2 of 32 registers
using Bytes = uint8x16_t;
using Floats = float32x4_t;
static inline Bytes load(const uint8_t* w) { return vld1q_u8(w); }
static inline Bytes low(Bytes w) { return vandq_u8(w, vdupq_n_u8(15)); }
static inline Bytes high(Bytes w) { return vshrq_n_u8(w, 4); }
static inline Floats scales_at(const uint16_t* from) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16));
}
static inline void store(float* to, Floats x) { vst1q_f32(to, x); }
struct Sums {
  int32x4_t all = vdupq_n_s32(0);
  inline void add(Bytes w, int32_t four) {
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
    all = vdotq_s32(all, vreinterpretq_s8_u8(w), x);
  }
  inline Floats times(Floats scales, int32_t above, Floats to) const {
    return vfmaq_f32(to, vcvtq_f32_s32(vsubq_s32(all, vdupq_n_s32(above))), scales);
  }
};
#else  // for the compiler to vectorise
constexpr int ROWS = 8, MOST = 1;
struct Bytes {
  uint8_t all[4 * ROWS];
};
struct Floats {
  float all[ROWS];
};
static inline Bytes load(const uint8_t* w) {
  Bytes both;
  std::memcpy(&both, w, sizeof both);
  return both;
}
static inline Bytes low(Bytes w) {
  for (auto& each : w.all) each &= 15;
  return w;
}
static inline Bytes high(Bytes w) {
  for (auto& each : w.all) each >>= 4;
  return w;
}
static inline Floats scales_at(const uint16_t* from) {
  Floats scales;
  for (int i = 0; i < ROWS; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    std::memcpy(&scales.all[i], &bits, sizeof bits);
  }
  return scales;
}
static inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }
struct Sums {
  int32_t all[ROWS] = {};
  inline void add(const Bytes& w, int32_t four) {
    int8_t x[4];
    std::memcpy(x, &four, sizeof x);
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < 4; ++j) all[i] += w.all[4 * i + j] * x[j];
  }
  inline Floats times(const Floats& scales, int32_t above, Floats to) const {
    for (int i = 0; i < ROWS; ++i) to.all[i] += static_cast<float>(all[i] - above) * scales.all[i];
    return to;
  }
};
#endif

// N rows of x (K bytes apart) with a tile of W → (N, ROWS). above (K/32, N): ABOVE times the sum of
// each 32 numbers of x.
template <int N>
static void tile(
    const int8_t* x, const int32_t* above, const uint8_t* w, const uint16_t* scales, int64_t K,
    float* to) {
  Floats totals[N] = {};
  for (int64_t k = 0; k < K; k += SPAN, above += N, scales += ROWS) {
    Sums sums[N];
#pragma GCC unroll 1  // unrolled, GCC would keep all products before it adds them
    for (int i = 0; i < SPAN; i += 8, w += 4 * ROWS) {
      if (N > 1) __builtin_prefetch(w + K * ROWS / 2);  // the next tile
      const Bytes both = load(w), first = low(both), second = high(both);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        int32_t fours[2];
        std::memcpy(&fours[0], x + n * K + k + i, 4);
        std::memcpy(&fours[1], x + n * K + k + i + 4, 4);
        sums[n].add(first, fours[0]);
        sums[n].add(second, fours[1]);
      }
    }
    const Floats scale = scales_at(scales);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) totals[n] = sums[n].times(scale, above[n], totals[n]);
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) store(to + n * ROWS, totals[n]);
}

}  // namespace int4
