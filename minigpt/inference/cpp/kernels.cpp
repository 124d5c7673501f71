// One token for each of a few texts through all blocks of a model, on a CPU (minigpt/inference/decoder.py).
//
// With few rows the time of a product y = x Wᵀ + b is that of reading W once. BLAS is made for many rows
// and reads it at half of what memory gives, or less; here each thread reads its share of W from end to
// end. Every number of the result is one sum in the same order however many rows x has.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>  // torch/extension.h takes a third longer to compile

#include "tiles.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

using at::Tensor;

constexpr int64_t FEW = 16;  // rows up to which linear() is faster than PyTorch's own

static const float* data_of(const std::optional<Tensor>& bias) {
  return bias ? bias->data_ptr<float>() : nullptr;
}

// y (N, O) = value(sum, n, o), the sums by tile(rows, first, o, sums): of `rows` rows of x, a constant
// from 1 to MOST, from row `first` on, with ROWS rows of W from row o on → (rows, ROWS). K: numbers in
// a row. Threads have whole tiles each, so that a row is summed alike whatever their number.
template <int MOST, int ROWS, typename Sum, typename Tile, typename Value>
static void over_tiles(int64_t N, int64_t O, int64_t K, float* y, Tile tile, Value value) {
  const int64_t grain = std::max<int64_t>(1, 16384 / (ROWS * K));
  at::parallel_for(0, (O + ROWS - 1) / ROWS, grain, [&](int64_t begin, int64_t end) {
    Sum sums[MOST * ROWS];
    for (int64_t o = begin * ROWS; o < end * ROWS; o += ROWS)
      for (int64_t first = 0; first < N; first += MOST) {
        const int64_t count = std::min<int64_t>(MOST, N - first), last = std::min<int64_t>(ROWS, O - o);
        with_constant<MOST>(count, [&](auto rows) { tile(rows, first, o, sums); });
        for (int64_t n = 0; n < count; ++n)
          for (int64_t j = 0; j < last; ++j)
            y[(first + n) * O + o + j] = value(sums[n * ROWS + j], first + n, o + j);
      }
  });
}

// x (N, K), weight (O, K), bias (O,) or none, all float32 → (N, O).
Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  using namespace float32;
  constexpr int ROWS = 16;
  const int64_t N = x.size(0), K = x.size(1), O = weight.size(0);
  Tensor y = at::empty({N, O}, x.options());
  const float *from = x.data_ptr<float>(), *w = weight.data_ptr<float>(), *b = data_of(bias);
  const auto tile = [=](auto rows, int64_t first, int64_t o, float* sums) {
    const int64_t last = std::min<int64_t>(ROWS, O - o);
    const auto block = [&](int64_t j, int64_t k) {
      float32::tile<rows>(
          from + first * K + k, w + (o + j) * K + k, K, std::min(BLOCK, K - k), sums + j, ROWS);
    };
    std::fill_n(sums, rows * ROWS, 0.0f);
    if (first == 0)  // W is read from memory, from end to end
      for (int64_t j = 0; j < last; ++j)
        for (int64_t k = 0; k < K; k += BLOCK) block(j, k);
    else  // the same sums, with the block of x in the cache
      for (int64_t k = 0; k < K; k += BLOCK)
        for (int64_t j = 0; j < last; ++j) block(j, k);
  };
  const auto value = [=](float sum, int64_t, int64_t o) { return b ? sum + b[o] : sum; };
  over_tiles<MOST, ROWS, float>(N, O, K, y.data_ptr<float>(), tile, value);
  return y;
}

// The rows of x in int8, filled up with zeros to K numbers; each has a scale of its own.
struct Int8Rows {
  std::vector<int8_t> numbers;  // (N, K)
  std::vector<float> scales;    // (N,)
  Int8Rows(const Tensor& x, int64_t K) : numbers(x.size(0) * K, 0), scales(x.size(0)) {
    const int64_t N = x.size(0), count = x.size(1);
    const float* from = x.data_ptr<float>();
    at::parallel_for(0, N, std::max<int64_t>(1, 8192 / K), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const float* row = from + n * count;
        int8_t* to = &numbers[n * K];
        float most = 0;
#pragma omp simd reduction(max : most)
        for (int64_t k = 0; k < count; ++k) most = std::max(most, std::fabs(row[k]));
        const float scale = scales[n] = std::max(most / 127, 1e-30f);
        for (int64_t k = 0; k < count; ++k)
          to[k] = static_cast<int8_t>(std::nearbyint(row[k] / scale));
      }
    });
  }
};

static int32_t sum_of(const int8_t* numbers, int64_t count) {
  int32_t sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += numbers[k];
  return sum;
}

// x (N, K) float32, weight ≈ packed · scale of O rows, packed by pack_int8() → (N, O).
Tensor linear_int8(
    const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& bias) {
  using namespace int8;
  const int64_t N = x.size(0), O = scale.size(0), K = 4 * packed.size(1);
  Tensor y = at::empty({N, O}, x.options());
  const Int8Rows rows_of_x(x, K);
  const int8_t* from = rows_of_x.numbers.data();
  std::vector<int32_t> above(N);  // what ABOVE adds to the sums
  if (ABOVE)
    for (int64_t n = 0; n < N; ++n) above[n] = ABOVE * sum_of(from + n * K, K);
  const uint8_t* w = packed.data_ptr<uint8_t>();
  const float *s = scale.data_ptr<float>(), *b = data_of(bias);
  const auto tile = [&](auto rows, int64_t first, int64_t o, int32_t* sums) {
    int8::tile<rows>(from + first * K, w + o * K, K, sums);
  };
  const auto value = [&](int32_t sum, int64_t n, int64_t o) {
    const float product = static_cast<float>(sum - above[n]) * rows_of_x.scales[n] * s[o];
    return b ? product + b[o] : product;
  };
  over_tiles<MOST, ROWS, int32_t>(N, O, K, y.data_ptr<float>(), tile, value);
  return y;
}

// q (O, K) int8 → (tiles, K/4, ROWS, 4) as int8_tile.h describes, filled up with zeros.
Tensor pack_int8(const Tensor& q) {
  using namespace int8;
  const int64_t O = q.size(0), K = q.size(1), tiles = (O + ROWS - 1) / ROWS, fours = (K + 3) / 4;
  Tensor whole = at::zeros({tiles * ROWS, fours * 4}, q.options().dtype(at::kShort));
  whole.slice(0, 0, O).slice(1, 0, K).copy_(q);
  whole = (whole + ABOVE).to(at::kByte).view({tiles, ROWS, fours, 4});
  return whole.transpose(1, 2).contiguous();
}

// x (N, K) float32, weight ≈ packed · scales of O rows, both by pack_int4() → (N, O).
Tensor linear_int4(
    const Tensor& x, const Tensor& packed, const Tensor& scales, const std::optional<Tensor>& bias,
    int64_t O) {
  using namespace int4;
  const int64_t N = x.size(0), spans = packed.size(1), K = spans * SPAN;
  Tensor y = at::empty({N, O}, x.options());
  const Int8Rows rows_of_x(x, K);
  const int8_t* from = rows_of_x.numbers.data();
  std::vector<int32_t> above(N * spans);  // (spans, rows) for the rows of each tile
  for (int64_t n = 0; n < N; ++n) {
    const int64_t first = n / MOST * MOST, count = std::min<int64_t>(MOST, N - first);
    for (int64_t i = 0; i < spans; ++i)
      above[first * spans + i * count + n - first] = ABOVE * sum_of(from + n * K + i * SPAN, SPAN);
  }
  const uint8_t* w = packed.data_ptr<uint8_t>();
  const auto* s = reinterpret_cast<const uint16_t*>(scales.data_ptr<at::BFloat16>());
  const float* b = data_of(bias);
  const auto tile = [&](auto rows, int64_t first, int64_t o, float* sums) {
    int4::tile<rows>(from + first * K, &above[first * spans], w + o * K / 2, s + o * spans, K, sums);
  };
  const auto value = [&](float sum, int64_t n, int64_t o) {
    const float product = sum * rows_of_x.scales[n];
    return b ? product + b[o] : product;
  };
  over_tiles<MOST, ROWS, float>(N, O, K, y.data_ptr<float>(), tile, value);
  return y;
}

// q (O, K) int8 of -8 to 7, scales (O, K/32) → both as int4_tile.h describes, filled up with zeros.
std::tuple<Tensor, Tensor> pack_int4(const Tensor& q, const Tensor& scales) {
  using namespace int4;
  const int64_t O = q.size(0), K = q.size(1), tiles = (O + ROWS - 1) / ROWS;
  const int64_t spans = scales.size(1);
  Tensor whole = at::zeros({tiles * ROWS, spans * SPAN}, q.options());
  whole.slice(0, 0, O).slice(1, 0, K).copy_(q);
  whole = (whole + ABOVE).to(at::kByte).view({tiles, ROWS, spans, SPAN / 8, 2, 4});
  whole = whole.permute({4, 0, 2, 3, 1, 5});
  Tensor scale = at::zeros({tiles * ROWS, spans}, scales.options().dtype(at::kBFloat16));
  scale.slice(0, 0, O).copy_(scales);
  return {(whole[0] + whole[1] * 16).contiguous(),
          scale.view({tiles, ROWS, spans}).transpose(1, 2).contiguous()};
}

// exp(x) as Cephes computes it, 2ⁿ · p(r), in steps that the compiler vectorises; to 1e-7 of it.
static inline float exp_of(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  const float n = std::nearbyint(x * 1.44269504f), r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return (p * r * r + r + 1) * power;
}

// One head: query (hs) with `length` keys and values (hs each) → to (hs). weights: room for `length`.
static void attend_one(
    const float* query, const float* keys, const float* values, int64_t length, int64_t hs,
    float scale, float* __restrict weights, float* __restrict to) {
  std::fill_n(weights, length, 0.0f);
  int64_t t = 0;
  for (; t < length; ++t) float32::tile<1>(query, keys + t * hs, hs, hs, weights + t, 1);
  float most = -INFINITY, sum = 0;
  for (t = 0; t < length; ++t) most = std::max(most, weights[t]);
  if (most != most) most = 0;
  for (t = 0; t < length; ++t) weights[t] = exp_of(scale * (weights[t] - most));
  for (t = 0; t < length; ++t) sum += weights[t];
  std::fill_n(to, hs, 0.0f);
  for (t = 0; t < length; ++t) {
    const float weight = weights[t] / sum, *value = values + t * hs;
#pragma omp simd
    for (int64_t i = 0; i < hs; ++i) to[i] += weight * value[i];
  }
}

// The parts of a block, as model.py has them. Tensors are float32 and contiguous.

// weight (O, K); or packed in int8 with scale (O,), or in int4 with scale (tiles, K/32, ROWS)
struct Linear {
  Tensor weight;
  std::optional<Tensor> scale, bias;
  int64_t O;
  Tensor operator()(const Tensor& x) const {
    if (scale && scale->dim() > 1) return linear_int4(x, weight, *scale, bias, O);
    if (scale) return linear_int8(x, weight, *scale, bias);
    return x.size(0) > FEW ? at::linear(x, weight, bias) : ::linear(x, weight, bias);
  }
};

struct Norm {  // LayerNorm, or RMSNorm, of rows of the weight's size
  Tensor weight;
  std::optional<Tensor> bias;
  double eps;
  bool centered;
  void operator()(const float* x, float* to, int64_t rows) const {
    const int64_t C = weight.size(0);
    const float *w = weight.data_ptr<float>(), *b = data_of(bias);
    for (int64_t n = 0; n < rows; ++n, x += C, to += C) {
      float mean = 0, squares = 0;
      if (centered) {
#pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < C; ++i) mean += x[i];
        mean /= C;
      }
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < C; ++i) squares += (x[i] - mean) * (x[i] - mean);
      const float r = 1 / std::sqrt(squares / C + static_cast<float>(eps));
      for (int64_t i = 0; i < C; ++i) to[i] = (x[i] - mean) * r * w[i];
      if (b)
        for (int64_t i = 0; i < C; ++i) to[i] += b[i];
    }
  }
};

struct Block {
  Norm attn_norm;
  Linear qkv;
  std::optional<Norm> q_norm, k_norm;
  Linear attn_proj;
  Norm mlp_norm;
  Linear fc, mlp_proj;
  bool swiglu;
};

// The first half of a head (hs) and the second are the two coordinates of hs/2 points: turn them.
static void rotate(float* head, const float* cos, const float* sin, int64_t hs) {
  float *first = head, *second = head + hs / 2;
  for (int64_t i = 0; i < hs / 2; ++i) {
    const float a = first[i], b = second[i];
    first[i] = a * cos[i] - b * sin[i];
    second[i] = b * cos[i] + a * sin[i];
  }
}

// h (N, n_hidden) of the MLP, or (N, 2 · n_hidden): gate and up → (N, n_hidden). Both activations are
// x · sigmoid(z); GELU is the approximation by tanh.
static Tensor activate(const Tensor& h, bool swiglu) {
  const int64_t N = h.size(0), wide = h.size(1), H = swiglu ? wide / 2 : wide;
  Tensor y = at::empty({N, H}, h.options());
  const float* from = h.data_ptr<float>();
  float* to = y.data_ptr<float>();
  at::parallel_for(0, N, std::max<int64_t>(1, 8192 / H), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float *x = from + n * wide, *up = x + H;
      float* __restrict out = to + n * H;
      if (swiglu)
        for (int64_t i = 0; i < H; ++i) out[i] = x[i] / (1 + exp_of(-x[i])) * up[i];
      else
        for (int64_t i = 0; i < H; ++i)
          out[i] = x[i] / (1 + exp_of(-1.5957691216f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
    }
  });
  return y;
}

class Decoder {
 public:
  Decoder(std::vector<Block> blocks, int64_t n_head, int64_t n_kv)
      : blocks_(std::move(blocks)), nh_(n_head), n_kv_(n_kv) {}

  // A token for each of B texts: h (B, C), changed in place, becomes the output of the last block. cos
  // and sin (B, hs/2), or none; cache_k and cache_v (n_layer, n_slots, n_kv, capacity, hs); slots and
  // positions (B,) int64: of each text and of its token.
  void step(
      Tensor h, const std::optional<Tensor>& cos, const std::optional<Tensor>& sin, Tensor cache_k,
      Tensor cache_v, const Tensor& slots, const Tensor& positions) const {
    const int64_t B = h.size(0), C = h.size(1);
    Tensor normed = at::empty_like(h);
    const float *x = h.data_ptr<float>(), *c = data_of(cos), *s = data_of(sin);
    float* y = normed.data_ptr<float>();
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const Block& block = blocks_[i];
      block.attn_norm(x, y, B);
      Tensor qkv = block.qkv(normed);
      h.add_(block.attn_proj(attend(block, qkv, c, s, cache_k[i], cache_v[i], slots, positions)));
      block.mlp_norm(x, y, B);
      h.add_(block.mlp_proj(activate(block.fc(normed), block.swiglu)));
    }
  }

 private:
  // qkv (B, (nh + 2 n_kv) · hs): normalises and rotates q and k in place, writes k and v into the cache
  // of the layer and attends to all that it holds of each text → (B, nh · hs).
  Tensor attend(
      const Block& block, Tensor& qkv, const float* cos, const float* sin, const Tensor& cache_k,
      const Tensor& cache_v, const Tensor& slots, const Tensor& positions) const {
    const int64_t B = qkv.size(0), hs = cache_k.size(3), group = nh_ / n_kv_;
    Tensor y = at::empty({B, nh_ * hs}, qkv.options());
    const auto slot = slots.accessor<int64_t, 1>(), position = positions.accessor<int64_t, 1>();
    const float scale = 1 / std::sqrt(static_cast<float>(hs));
    float *data = qkv.data_ptr<float>(), *to = y.data_ptr<float>();
    float *all_k = cache_k.data_ptr<float>(), *all_v = cache_v.data_ptr<float>();
    const int64_t next_slot = cache_k.stride(0), next_head = cache_k.stride(1);
    at::parallel_for(0, B * n_kv_, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> weights(cache_k.size(2));
      for (int64_t one = begin; one < end; ++one) {
        const int64_t b = one / n_kv_, j = one % n_kv_, last = position[b];
        float* row = data + b * qkv.size(1);
        float *q = row + j * group * hs, *k = row + (nh_ + j) * hs, *v = k + n_kv_ * hs;
        float* keys = all_k + slot[b] * next_slot + j * next_head;
        float* values = all_v + slot[b] * next_slot + j * next_head;
        if (block.q_norm) (*block.q_norm)(q, q, group), (*block.k_norm)(k, k, 1);
        if (cos) {
          const int64_t turn = b * hs / 2;
          for (int64_t head = 0; head < group; ++head)
            rotate(q + head * hs, cos + turn, sin + turn, hs);
          rotate(k, cos + turn, sin + turn, hs);
        }
        std::copy_n(k, hs, keys + last * hs);
        std::copy_n(v, hs, values + last * hs);
        for (int64_t head = 0; head < group; ++head)
          attend_one(q + head * hs, keys, values, last + 1, hs, scale, weights.data(),
                     to + (b * nh_ + j * group + head) * hs);
      }
    });
    return y;
  }

  std::vector<Block> blocks_;
  int64_t nh_, n_kv_;
};

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using OptionalTensor = std::optional<Tensor>;
  using OptionalNorm = std::optional<Norm>;
  namespace py = pybind11;
  m.def("linear", &linear);
  m.def("linear_int8", &linear_int8);
  m.def("linear_int4", &linear_int4);
  m.def("pack_int8", &pack_int8);
  m.def("pack_int4", &pack_int4);
  py::class_<Linear>(m, "Linear").def(
      py::init([](Tensor weight, OptionalTensor scale, OptionalTensor bias, int64_t n_out) {
        return Linear{weight, scale, bias, n_out};
      }));
  py::class_<Norm>(m, "Norm").def(
      py::init([](Tensor weight, OptionalTensor bias, double eps, bool centered) {
        return Norm{weight, bias, eps, centered};
      }));
  py::class_<Block>(m, "Block").def(
      py::init([](Norm attn_norm, Linear qkv, OptionalNorm q_norm, OptionalNorm k_norm,
                  Linear attn_proj, Norm mlp_norm, Linear fc, Linear mlp_proj, bool swiglu) {
        return Block{attn_norm, qkv, q_norm, k_norm, attn_proj, mlp_norm, fc, mlp_proj, swiglu};
      }));
  py::class_<Decoder>(m, "Decoder")
      .def(py::init<std::vector<Block>, int64_t, int64_t>())
      .def("step", &Decoder::step, py::call_guard<py::gil_scoped_release>());
}
