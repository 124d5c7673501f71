// What writing a token is made of (minigpt/inference/kernels.py): y = x Wᵀ + b for a few rows x, and attention
// of one position to those before it.
//
// With few rows the time is that of reading W once. BLAS is made for many rows and reads it at half
// of what memory gives, or less; here each thread goes through its share of W from end to end. Every
// number of the result is one sum in the same order however many rows x has.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define HAS_INT8 1
#include <immintrin.h>
#else
#define HAS_INT8 0
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

using torch::Tensor;

// Four rows of W (K apart) with x: four sums that do not wait for one another.
static inline void four_dots(const float* x, const float* w, int64_t K, float* sums) {
  const float *w1 = w + K, *w2 = w1 + K, *w3 = w2 + K;
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t k = 0; k < K; ++k) {
    s0 += x[k] * w[k];
    s1 += x[k] * w1[k];
    s2 += x[k] * w2[k];
    s3 += x[k] * w3[k];
  }
  sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

static inline float dot(const float* x, const float* w, int64_t K) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < K; ++k) sum += x[k] * w[k];
  return sum;
}

// body(first, last) on every thread, each for its share of O rows of K numbers; shares are whole
// fours, so that a row is summed alike whatever the number of threads.
template <typename Body>
static void over_rows(int64_t O, int64_t K, Body body) {
  const int64_t fours = (O + 3) / 4, grain = std::max<int64_t>(1, 16384 / K);
  at::parallel_for(0, fours, grain, [&](int64_t begin, int64_t end) {
    body(4 * begin, std::min(O, 4 * end));
  });
}

static const float* data_of(const c10::optional<Tensor>& bias) {
  return bias ? bias->data_ptr<float>() : nullptr;
}

// x (N, K), weight (O, K), bias (O,) or none, all float32 → (N, O).
Tensor linear(const Tensor& x, const Tensor& weight, const c10::optional<Tensor>& bias) {
  const int64_t N = x.size(0), K = x.size(1), O = weight.size(0);
  Tensor y = torch::empty({N, O}, x.options());
  const float* b = data_of(bias);
  const float *from = x.data_ptr<float>(), *w = weight.data_ptr<float>();
  float* to = y.data_ptr<float>();
  over_rows(O, K, [&](int64_t first, int64_t last) {
    for (int64_t o = first; o < last; o += 4)
      for (int64_t n = 0; n < N; ++n) {
        float sums[4];
        const int64_t count = std::min<int64_t>(4, last - o);
        if (count == 4)
          four_dots(from + n * K, w + o * K, K, sums);
        else
          for (int64_t i = 0; i < count; ++i) sums[i] = dot(from + n * K, w + (o + i) * K, K);
        for (int64_t i = 0; i < count; ++i) to[n * O + o + i] = b ? sums[i] + b[o + i] : sums[i];
      }
  });
  return y;
}

#if HAS_INT8
// Processors multiply four bytes of W at a time with four of x and add the products to 32 bits
// (VNNI), for 16 rows of W at once. So W lies in groups of 16 rows, of each row four numbers in
// turn: (groups, K/4, 16, 4); and as uint8, 128 above what it is, for one factor must be unsigned.
constexpr int64_t ROWS = 16;
constexpr int32_t ABOVE = 128;

#ifdef __AVX512VNNI__
constexpr int GROUPS = 2, MOST = 8;  // a tile's sums: 2 · 8 of 32 registers
struct Sums {
  __m512i all = _mm512_setzero_si512();
  inline void add(const uint8_t* w, int32_t four) {
    all = _mm512_dpbusd_epi32(all, _mm512_loadu_si512(w), _mm512_set1_epi32(four));
  }
};
#else
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

// A row of x (K) in int8 → its scale; `sum` is what its numbers add up to.
static float to_int8(const float* x, int64_t K, int8_t* to, int32_t* sum) {
  float most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t k = 0; k < K; ++k) most = std::max(most, std::fabs(x[k]));
  const float scale = std::max(most / 127, 1e-30f);
  int32_t total = 0;
  for (int64_t k = 0; k < K; ++k) {
    to[k] = static_cast<int8_t>(std::nearbyint(x[k] / scale));
    total += to[k];
  }
  *sum = total;
  return scale;
}

// x (N, K) float32, weight ≈ (packed - ABOVE) · scale of O rows, packed as above with its K filled up
// to a multiple of four and its rows to whole tiles; x is rounded to int8, each row with a scale of
// its own → (N, O).
Tensor linear_int8(
    const Tensor& x, const Tensor& packed, const Tensor& scale, const c10::optional<Tensor>& bias) {
  const int64_t N = x.size(0), O = scale.size(0), K = 4 * packed.size(1);
  Tensor y = torch::empty({N, O}, x.options());
  std::vector<int8_t> whole(N * K, 0);
  std::vector<float> x_scale(N);
  std::vector<int32_t> x_sum(N);
  for (int64_t n = 0; n < N; ++n)
    x_scale[n] = to_int8(x.data_ptr<float>() + n * x.size(1), x.size(1), &whole[n * K], &x_sum[n]);
  const uint8_t* w = packed.data_ptr<uint8_t>();
  const float *s = scale.data_ptr<float>(), *b = data_of(bias);
  float* to = y.data_ptr<float>();
  constexpr int64_t WIDE = GROUPS * ROWS;
  const int64_t grain = std::max<int64_t>(1, 16384 / (WIDE * K));
  at::parallel_for(0, packed.size(0) / GROUPS, grain, [&](int64_t begin, int64_t end) {
    int32_t sums[MOST * WIDE];
    for (int64_t part = begin; part < end; ++part)
      for (int64_t first = 0; first < N; first += MOST) {
        const int64_t rows = std::min<int64_t>(MOST, N - first);
        const int64_t o = part * WIDE, count = std::min(WIDE, O - o);
        tile_of<MOST>(rows, &whole[first * K], w + o * K, K, sums);
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t n = first + i;
          for (int64_t j = 0; j < count; ++j) {
            const int32_t sum = sums[i * WIDE + j] - ABOVE * x_sum[n];
            const float value = static_cast<float>(sum) * x_scale[n] * s[o + j];
            to[n * O + o + j] = b ? value + b[o + j] : value;
          }
        }
      }
  });
  return y;
}

// q (O, K) int8 → packed.
Tensor pack(const Tensor& q) {
  const int64_t O = q.size(0), K = q.size(1), wide = GROUPS * ROWS;
  const int64_t groups = (O + wide - 1) / wide * GROUPS, fours = (K + 3) / 4;
  Tensor whole = torch::zeros({groups * ROWS, fours * 4}, q.options().dtype(torch::kInt16));
  whole.slice(0, 0, O).slice(1, 0, K).copy_(q);
  whole = (whole + ABOVE).to(torch::kUInt8).view({groups, ROWS, fours, 4});
  return whole.transpose(1, 2).contiguous();
}
#endif

// One head: query (hs) with `length` keys and values (hs each) → to (hs). weights: room for `length`.
static void attend_one(
    const float* query, const float* keys, const float* values, int64_t length, int64_t hs,
    float scale, float* __restrict weights, float* __restrict to) {
  int64_t t = 0;
  for (; t + 4 <= length; t += 4) four_dots(query, keys + t * hs, hs, weights + t);
  for (; t < length; ++t) weights[t] = dot(query, keys + t * hs, hs);
  float most = -INFINITY, sum = 0;
  for (t = 0; t < length; ++t) most = std::max(most, weights[t]);
  for (t = 0; t < length; ++t) sum += weights[t] = std::exp(scale * (weights[t] - most));
  std::fill_n(to, hs, 0.0f);
  for (t = 0; t < length; ++t) {
    const float weight = weights[t] / sum, *value = values + t * hs;
#pragma omp simd
    for (int64_t i = 0; i < hs; ++i) to[i] += weight * value[i];
  }
}

// A token for each of B texts: its key and value go into the cache, then its queries attend to all
// that the cache holds of the text. q (B, nh, hs), k and v (B, n_kv, hs), cache_k and cache_v
// (n_slots, n_kv, capacity, hs), slots and places (B,) int64: where each text and each token stands;
// all float32 with numbers of a head side by side → (B, nh · hs).
Tensor attend(
    const Tensor& q, const Tensor& k, const Tensor& v, Tensor cache_k, Tensor cache_v,
    const Tensor& slots, const Tensor& places) {
  const int64_t B = q.size(0), nh = q.size(1), n_kv = k.size(1), hs = q.size(2), group = nh / n_kv;
  Tensor y = torch::empty({B, nh * hs}, q.options());
  const auto slot = slots.accessor<int64_t, 1>(), place = places.accessor<int64_t, 1>();
  const float scale = 1 / std::sqrt(static_cast<float>(hs));
  at::parallel_for(0, B * n_kv, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> weights(cache_k.size(2));
    for (int64_t one = begin; one < end; ++one) {
      const int64_t b = one / n_kv, j = one % n_kv, last = place[b], s = slot[b];
      float* keys = cache_k.data_ptr<float>() + s * cache_k.stride(0) + j * cache_k.stride(1);
      float* values = cache_v.data_ptr<float>() + s * cache_v.stride(0) + j * cache_v.stride(1);
      std::copy_n(k.data_ptr<float>() + b * k.stride(0) + j * k.stride(1), hs, keys + last * hs);
      std::copy_n(v.data_ptr<float>() + b * v.stride(0) + j * v.stride(1), hs, values + last * hs);
      for (int64_t head = j * group; head < (j + 1) * group; ++head) {
        const float* query = q.data_ptr<float>() + b * q.stride(0) + head * q.stride(1);
        attend_one(query, keys, values, last + 1, hs, scale, weights.data(),
                   y.data_ptr<float>() + (b * nh + head) * hs);
      }
    }
  });
  return y;
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("has_int8") = static_cast<bool>(HAS_INT8);
  m.def("linear", &linear);
  m.def("attend", &attend);
#if HAS_INT8
  m.def("linear_int8", &linear_int8);
  m.def("pack", &pack);
#endif
}
