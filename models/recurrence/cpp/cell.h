// What a cell does to one row besides its matrix products, forward and backward, and the update gate's arithmetic.
//
// A state of a layer is h, or h and then c. Every vector is P long, and so is every block of a row's input product W x,
// recurrent product U h, bias, saved values and pre-activation gradient.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vector.h"

namespace {

enum class Cell { lstm, gru, gru_reset_after };

template <Cell C> constexpr int64_t GATES = C == Cell::lstm ? 4 : 3;
template <Cell C> constexpr int64_t STATES = C == Cell::lstm ? 2 : 1;
// Blocks of the product U h that need nothing of x: a GRU that resets before the product keeps U_n apart.
template <Cell C> constexpr int64_t PRODUCTS = C == Cell::lstm ? 4 : C == Cell::gru ? 2 : 3;
template <Cell C> constexpr int64_t SAVED = C == Cell::gru ? 3 : 4;

template <typename T> inline T accumulate(T p, T a) { return a + std::min(p, 1 - a); }  // eq. 5

// The derivative of min(p, 1 − a) by p, which is also that of a + min(p, 1 − a) by a; torch halves it at a tie.
template <typename T> inline T slope(T p, T a) { return p < 1 - a ? T(1) : p > 1 - a ? T(0) : T(0.5); }

// saved: i, f, g, o, or null where no backward follows.
template <typename T>
inline void lstm_forward(int64_t P, const T *input, const T *product, const T *bias, const T *state, T *new_state, T *saved) {
    for (int64_t j = 0; j < P; j += WIDTH<T>) {
        const auto pre = [&](int64_t g) { return load(input + g * P + j) + load(product + g * P + j) + load(bias + g * P + j); };
        const Vec<T> i = sigmoid_(pre(0)), f = sigmoid_(pre(1)), g = tanh_(pre(2)), o = sigmoid_(pre(3));
        const Vec<T> c = f * load(state + P + j) + i * g;
        store(new_state + P + j, c);
        store(new_state + j, o * tanh_(c));
        if (saved) store(saved + j, i), store(saved + P + j, f), store(saved + 2 * P + j, g), store(saved + 3 * P + j, o);
    }
}

// The gradient of new_state, in `grad`, becomes that of the old state's c; its h gets none here, only by the product.
template <typename T>
inline void lstm_backward(int64_t P, const T *saved, const T *state, const T *new_state, T *grad, T *pre_activation) {
    for (int64_t j = 0; j < P; j += WIDTH<T>) {
        const auto block = [&](int64_t g) { return load(saved + g * P + j); };
        const Vec<T> g_h = load(grad + j);
        const Vec<T> i = block(0), f = block(1), g = block(2), o = block(3), tanh_c = tanh_(load(new_state + P + j));
        const Vec<T> g_c = load(grad + P + j) + g_h * o * (1 - tanh_c * tanh_c);
        store(pre_activation + j, g_c * g * i * (1 - i));
        store(pre_activation + P + j, g_c * load(state + P + j) * f * (1 - f));
        store(pre_activation + 2 * P + j, g_c * i * (1 - g * g));
        store(pre_activation + 3 * P + j, g_h * tanh_c * o * (1 - o));
        store(grad + P + j, g_c * f);
    }
}

// Of a GRU that resets before the product: r · h, which U_n is multiplied with.
template <typename T>
inline void gru_reset_forward(int64_t P, const T *input, const T *product, const T *bias, const T *h, T *reset, T *saved) {
    for (int64_t j = 0; j < P; j += WIDTH<T>) {
        const Vec<T> r = sigmoid_(load(input + j) + load(product + j) + load(bias + j));
        if (saved) store(saved + j, r);
        store(reset + j, r * load(h + j));
    }
}

template <typename T>
inline void gru_reset_backward(int64_t P, const T *saved, const T *h, const T *reset_grad, T *grad, T *pre_activation) {
    for (int64_t j = 0; j < P; j += WIDTH<T>) {
        const Vec<T> r = load(saved + j), d_rh = load(reset_grad + j);
        store(pre_activation + j, d_rh * load(h + j) * r * (1 - r));
        store(grad + j, load(grad + j) + d_rh * r);
    }
}

// saved: z and n of r, z, n; with reset after also r, and U_n h + b_hn as a fourth. reset_product: U_n (r · h), hidden_bias: b_hn,
// each of one of the two kinds.
template <typename T, Cell C>
inline void gru_forward(int64_t P, const T *input, const T *product, const T *bias, const T *hidden_bias, const T *reset_product,
                        const T *h, T *h_new, T *saved) {
    for (int64_t j = 0; j < P; j += WIDTH<T>) {
        const auto pre = [&](int64_t g) { return load(input + g * P + j) + load(product + g * P + j) + load(bias + g * P + j); };
        const Vec<T> z = sigmoid_(pre(1)), x_n = load(input + 2 * P + j) + load(bias + 2 * P + j), old = load(h + j);
        Vec<T> n;
        if constexpr (C == Cell::gru) {
            n = tanh_(x_n + load(reset_product + j));
        } else {
            const Vec<T> r = sigmoid_(pre(0)), h_n = load(product + 2 * P + j) + load(hidden_bias + j);
            n = tanh_(x_n + r * h_n);
            if (saved) store(saved + j, r), store(saved + 3 * P + j, h_n);
        }
        if (saved) store(saved + P + j, z), store(saved + 2 * P + j, n);
        store(h_new + j, n + z * (old - n));
    }
}

// The gradient of h_new, in `grad`, becomes what reaches h by z alone. product_grad (reset after): that of U h.
template <typename T, Cell C>
inline void gru_backward(int64_t P, const T *saved, const T *h, T *grad, T *pre_activation, T *product_grad) {
    for (int64_t j = 0; j < P; j += WIDTH<T>) {
        const auto block = [&](int64_t g) { return load(saved + g * P + j); };
        const Vec<T> g_h = load(grad + j), r = block(0), z = block(1), n = block(2);
        const Vec<T> d_n = g_h * (1 - z) * (1 - n * n), d_z = g_h * (load(h + j) - n) * z * (1 - z);
        store(pre_activation + P + j, d_z);
        store(pre_activation + 2 * P + j, d_n);
        store(grad + j, g_h * z);
        if constexpr (C == Cell::gru_reset_after) {
            const Vec<T> d_r = d_n * block(3) * r * (1 - r);
            store(pre_activation + j, d_r);
            store(product_grad + j, d_r), store(product_grad + P + j, d_z), store(product_grad + 2 * P + j, d_n * r);
        }
    }
}

}  // namespace
