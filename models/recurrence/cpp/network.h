// A call's inputs with the weights packed for its products, and what forward and backward both compute with them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cell.h"
#include "interface.h"
#include "matrix.h"
#include "parallel.h"

namespace {

template <typename T> struct Layer {
    Packed<T> input, recurrent, reset;        // Wᵀ; Uᵀ; a GRU's U_nᵀ
    Packed<T> input_t, recurrent_t, reset_t;  // W; U; U_n, for the backward
    std::vector<T> bias, hidden_bias;         // (G·P); b_hn of gru_reset_after (P)
};

// Scratch for one batch of candidates.
template <typename T, Cell C> struct Workspace {
    Rows<T> input, product, reset, reset_product;
    void resize(int64_t P, int64_t rows) {
        input.resize(rows, GATES<C> * P);
        product.resize(rows, PRODUCTS<C> * P);
        if (C == Cell::gru) reset.resize(rows, P), reset_product.resize(rows, P);
    }
};

template <typename T, Cell C> class Network {
  public:
    const ForwardInputs &inputs;
    const int64_t H, P;
    std::vector<Layer<T>> layers;
    std::vector<T> gate;  // w_p (P)
    T gate_bias;
    int64_t num_blocks;  // of rows: a thread owns one

    Network(const ForwardInputs &inputs_, bool backward)
        : inputs(inputs_), H(inputs.H), P(padded(inputs.H)), layers(inputs.L) {
        for (int64_t l = 0; l < inputs.L; l++) pack(l, backward);
        gate.assign(P, T(0));
        std::copy_n(static_cast<const T *>(inputs.update_weight), H, gate.data());
        gate_bias = *static_cast<const T *>(inputs.update_bias);
        num_blocks = std::max<int64_t>(1, std::min(inputs.num_threads, inputs.B));
    }

    int64_t state_size() const { return inputs.L * STATES<C> * P; }
    int64_t first_row(int64_t block) const { return inputs.B * block / num_blocks; }
    int64_t length(int64_t row) const { return inputs.lengths ? inputs.lengths[row] : inputs.T; }
    const T *x_row(int64_t t, int64_t row) const {
        return static_cast<const T *>(inputs.x) + t * inputs.x_stride_t + row * inputs.x_stride_b;
    }
    T *projected(int64_t t, int64_t row) const {
        return static_cast<T *>(inputs.projection) + (t * inputs.B + row) * GATES<C> * P;
    }
    // What `candidate` wants of layer 0.
    const T *input_row(int64_t t, int64_t row) const { return inputs.projection ? projected(t, row) : x_row(t, row); }
    const T *h_of(const T *state, int64_t l) const { return state + l * STATES<C> * P; }
    T *h_of(T *state, int64_t l) const { return state + l * STATES<C> * P; }
    // Where a state holds what the update gate reads: c of an LSTM's top layer, h of a GRU's.
    int64_t top() const { return (inputs.L * STATES<C> - 1) * P; }

    // s̃ = S(s, x) of layer l for n rows, given the products U h. x: the layer's input, or W x where it is already known.
    // saved: null, or where the gates' values go.
    void candidate(int64_t l, int64_t n, const T *const *x, const T *const *product, const T *const *old_state,
                   T *const *new_state, T *const *saved, Workspace<T, C> &work) const {
        const Layer<T> &layer = layers[l];
        const bool known = l == 0 && inputs.projection;
        const T *const *input = known ? x : const_cast<const T *const *>(work.input.at.data());
        if (!known) multiply(n, x, layer.input, work.input.at.data(), false);
        const T *bias = layer.bias.data();
        if constexpr (C == Cell::gru) {
            for (int64_t i = 0; i < n; i++)
                gru_reset_forward(P, input[i], product[i], bias, h_of(old_state[i], l), work.reset.at[i], saved ? saved[i] : nullptr);
            multiply(n, const_cast<const T *const *>(work.reset.at.data()), layer.reset, work.reset_product.at.data(), false);
        }
        for (int64_t i = 0; i < n; i++) {
            const T *old = h_of(old_state[i], l);
            T *now = h_of(new_state[i], l), *keep = saved ? saved[i] : nullptr;
            if constexpr (C == Cell::lstm)
                lstm_forward(P, input[i], product[i], bias, old, now, keep);
            else
                gru_forward<T, C>(P, input[i], product[i], bias, layer.hidden_bias.data(),
                                  C == Cell::gru ? work.reset_product.at[i] : nullptr, old, now, keep);
        }
    }

    T update_probability(const T *state) const {  // eq. 4
        return scalar_sigmoid(dot(state + top(), gate.data(), P) + gate_bias);
    }

  private:
    // work(0) … work(n − 1), by all threads where `size`, the numbers to be moved, is large.
    template <typename Work> void shared(int64_t n, int64_t size, const Work &work) const {
        const int64_t threads = size < 65536 ? 1 : std::min(inputs.num_threads, n);
        parallel(threads, [&](int64_t thread) {
            for (int64_t i = n * thread / threads; i < n * (thread + 1) / threads; i++) work(i);
        });
    }

    // Blocks first … first + blocks − 1 of a matrix (G·H, depth), transposed: column g·P + j is row (first + g)·H + j.
    void pack_transposed(Packed<T> &to, const T *matrix, int64_t depth, int64_t first, int64_t blocks) const {
        to.resize(depth, blocks * P);
        shared(blocks * H, depth * blocks * H, [&](int64_t i) {
            const T *from = matrix + (first * H + i) * depth;
            T *column = to.column(i / H * P + i % H);
            const int64_t step = to.panel_width(i / H * P + i % H);
            for (int64_t k = 0; k < depth; k++) column[k * step] = from[k];
        });
    }

    // The same blocks of a matrix (G·H, H) as they are.
    void pack_plain(Packed<T> &to, const T *matrix, int64_t first, int64_t blocks) const {
        to.resize(blocks * P, P);
        shared(H, blocks * H * H, [&](int64_t j) {
            T *column = to.column(j);
            const int64_t step = to.panel_width(j);
            for (int64_t i = 0; i < blocks * H; i++) column[(i / H * P + i % H) * step] = matrix[(first * H + i) * H + j];
        });
    }

    void pack(int64_t l, bool backward) {
        const auto weight = [&](int64_t i) { return static_cast<const T *>(inputs.weights[4 * l + i]); };
        const T *w = weight(0), *u = weight(1), *b_ih = weight(2), *b_hh = weight(3);
        Layer<T> &layer = layers[l];
        pack_transposed(layer.input, w, l == 0 ? inputs.D : H, 0, GATES<C>);
        pack_transposed(layer.recurrent, u, H, 0, PRODUCTS<C>);
        if (C == Cell::gru) pack_transposed(layer.reset, u, H, 2, 1);
        if (backward) {
            if (l > 0) pack_plain(layer.input_t, w, 0, GATES<C>);
            pack_plain(layer.recurrent_t, u, 0, PRODUCTS<C>);
            if (C == Cell::gru) pack_plain(layer.reset_t, u, 2, 1);
        }
        layer.bias.assign(GATES<C> * P, T(0));
        layer.hidden_bias.assign(P, T(0));
        for (int64_t g = 0; g < GATES<C>; g++)
            for (int64_t j = 0; j < H; j++) {
                const bool apart = C == Cell::gru_reset_after && g == 2;
                layer.bias[g * P + j] = b_ih[g * H + j] + (apart ? T(0) : b_hh[g * H + j]);
                if (apart) layer.hidden_bias[j] = b_hh[g * H + j];
            }
    }
};

}  // namespace
