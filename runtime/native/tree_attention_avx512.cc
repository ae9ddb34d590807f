// Tree attention with vectors of sixteen floats: AVX-512 F, BW, DQ and VL.
#include <immintrin.h>

#include "vector_avx2.h"

namespace gorgon {
namespace {

struct Wide {
  static constexpr int kWidth = 16, kKeys = 8;
  __m512 v;
  static Wide load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Wide set(float x) { return {_mm512_set1_ps(x)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  Wide operator+(Wide b) const { return {_mm512_add_ps(v, b.v)}; }
  Wide operator-(Wide b) const { return {_mm512_sub_ps(v, b.v)}; }
  Wide operator*(Wide b) const { return {_mm512_mul_ps(v, b.v)}; }
  static Wide fma(Wide a, Wide b, Wide c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Wide max(Wide a, Wide b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where one is NaN
  // 2^n, given n + 1.5 * 2^23
  static Wide power_of_two(Wide n) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(n.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f800000)))};
  }
  static Wide zero_below(Wide x, float limit, Wide y) {
    const __mmask16 below = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_LT_OQ);
    return {_mm512_mask_mov_ps(y.v, below, _mm512_setzero_ps())};
  }
  static Wide hide(Wide x, const uint8_t* seen, float hidden) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(seen));
    return {_mm512_mask_mov_ps(_mm512_set1_ps(hidden), _mm_test_epi8_mask(bytes, bytes), x.v)};
  }
};

using Narrow = Vector8;

}  // namespace
}  // namespace gorgon

#include "tree_attention_kernel.h"

namespace gorgon {
const Kernels kAvx512 = {write, attend, merge, exponential_array};
}
