// y = x Wᵀ + b for a few rows x: what writing a token is made of (minigpt/kernels.py).
//
// With few rows the time is that of reading W once. BLAS is made for many rows and reads it at half
// of what memory gives; here each thread goes through its share of W's rows from end to end. Every
// number of the result is one dot product, summed in the same order however many rows x has.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#ifdef __AVX512BW__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
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

// Activations of int8 lie in int16: processors multiply and add pairs of these in one instruction.
static inline int32_t dot(const int16_t* x, const int8_t* w, int64_t K) {
  int32_t sum = 0;
  int64_t k = 0;
#ifdef __AVX512BW__  // which GCC 12 does not find by itself
  __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (; k + 64 <= K; k += 64)
    for (int i = 0; i < 2; ++i) {
      const __m512i a = _mm512_loadu_si512(x + k + 32 * i);
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + k + 32 * i));
      sums[i] = _mm512_add_epi32(sums[i], _mm512_madd_epi16(a, _mm512_cvtepi8_epi16(b)));
    }
  sum = _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]));
#endif
#pragma omp simd reduction(+ : sum)
  for (int64_t i = k; i < K; ++i) sum += static_cast<int32_t>(x[i]) * static_cast<int16_t>(w[i]);
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

// The same with weight ≈ q · scale, q int8 (O, K) and scale float32 (O,); x is rounded to int8, each
// row with a scale of its own.
Tensor linear_int8(
    const Tensor& x, const Tensor& q, const Tensor& scale, const c10::optional<Tensor>& bias) {
  const int64_t N = x.size(0), K = x.size(1), O = q.size(0);
  Tensor y = torch::empty({N, O}, x.options());
  std::vector<int16_t> whole(N * K);
  std::vector<float> x_scale(N);
  const float* from = x.data_ptr<float>();
  for (int64_t n = 0; n < N; ++n) {
    float most = 0;
    for (int64_t k = 0; k < K; ++k) most = std::max(most, std::fabs(from[n * K + k]));
    x_scale[n] = std::max(most / 127, 1e-30f);
    for (int64_t k = 0; k < K; ++k)
      whole[n * K + k] = static_cast<int16_t>(std::nearbyint(from[n * K + k] / x_scale[n]));
  }
  const float *s = scale.data_ptr<float>(), *b = data_of(bias);
  const int8_t* w = q.data_ptr<int8_t>();
  float* to = y.data_ptr<float>();
  over_rows(O, K, [&](int64_t first, int64_t last) {
    for (int64_t o = first; o < last; ++o)
      for (int64_t n = 0; n < N; ++n) {
        const int32_t sum = dot(whole.data() + n * K, w + o * K, K);
        const float value = static_cast<float>(sum) * x_scale[n] * s[o];
        to[n * O + o] = b ? value + b[o] : value;
      }
  });
  return y;
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("linear", &linear);
  m.def("linear_int8", &linear_int8);
}
