// The processor's vectors, by GCC's or Clang's extension, and σ and tanh of them.
#pragma once

#include <cmath>
#include <cstdint>

// TILE_ROWS: as many rows of a product, two vectors wide, as the registers hold.
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_ROWS 8
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#else
#define VECTOR_BYTES 16
#define TILE_ROWS 6
#endif

namespace {

template <typename T> struct Vector;
template <> struct Vector<float> { typedef float type __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias)); };
template <> struct Vector<double> { typedef double type __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias)); };
template <typename T> using Vec = typename Vector<T>::type;
template <typename T> constexpr int WIDTH = VECTOR_BYTES / sizeof(T);

template <typename T> inline Vec<T> load(const T *p) { return *reinterpret_cast<const Vec<T> *>(p); }
template <typename T> inline void store(T *p, Vec<T> v) { *reinterpret_cast<Vec<T> *>(p) = v; }
template <typename T> inline T sum(Vec<T> v) {
    T total = 0;
    for (int i = 0; i < WIDTH<T>; i++) total += v[i];
    return total;
}

template <typename T> inline T dot(const T *a, const T *b, int64_t n) {
    Vec<T> total{};
    for (int64_t j = 0; j < n; j += WIDTH<T>) total += load(a + j) * load(b + j);
    return sum<T>(total);
}

// x · p(x²) / q(x²), fitted to a relative error of 6e-9; beyond ±8 tanh is within 3e-7 of ±1. NaN stays NaN.
inline Vec<float> tanh_(Vec<float> x) {
    const Vec<float> low = Vec<float>{} - 8.0f, high = Vec<float>{} + 8.0f;
    const Vec<float> c = x < low ? low : (x > high ? high : x), z = c * c;
    Vec<float> p = z * 1.523042136852837e-08f + 2.1894664314459078e-05f;
    p = p * z + 3.5715980920940638e-03f;
    p = p * z + 1.344449818134308e-01f;
    p = p * z + 1.0f;
    Vec<float> q = z * 8.522447956238466e-07f + 3.4112922730855644e-04f;
    q = q * z + 2.6164444163441658e-02f;
    q = q * z + 4.677782654762268e-01f;
    q = q * z + 1.0f;
    return p * c / q;
}

inline Vec<float> sigmoid_(Vec<float> x) { return 0.5f + 0.5f * tanh_(0.5f * x); }

// float64 is for checks: exact, one value at a time.
inline Vec<double> tanh_(Vec<double> x) {
    for (int i = 0; i < WIDTH<double>; i++) x[i] = std::tanh(x[i]);
    return x;
}

inline Vec<double> sigmoid_(Vec<double> x) {
    for (int i = 0; i < WIDTH<double>; i++) x[i] = 1 / (1 + std::exp(-x[i]));
    return x;
}

template <typename T> inline T scalar_sigmoid(T x) { return 1 / (1 + std::exp(-x)); }

}  // namespace
