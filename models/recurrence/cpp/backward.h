// The backward: every row goes back from update to update; what skipped steps add to the gates' gradients comes in between.
// Formulas: docs/fast-layers.md.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "network.h"

namespace {

// The rows of one block. An adjoint is the gradient of the loss by what it is named after.
template <typename T, Cell C> class Backward {
  public:
    // last: each row's last segment.
    Backward(const Network<T, C> &network, const Trace &trace_, const OutputGrads &output_grads_, const PreactivationGrads &grads_,
             const std::vector<int64_t> &last, int64_t block_)
        : net(network), inputs(network.inputs), trace(trace_), output_grads(output_grads_), grads(grads_), block(block_),
          first(network.first_row(block)), num_rows(network.first_row(block + 1) - first) {
        rows.resize(num_rows);
        for (int64_t i = 0; i < num_rows; i++) rows[i].segment = last[first + i];
        if (!grads.pre_activation) recent.resize(SUMMED + num_rows, inputs.L * GATES<C> * net.P);
        work.resize(net.P, CHUNK);
        candidates.resize(CHUNK, net.state_size());
        hidden.resize(num_rows, PRODUCTS<C> * net.P);
        if (C == Cell::gru) reset.resize(num_rows, net.P);
    }

    void run() {
        std::vector<int64_t> active(num_rows);
        for (int64_t i = 0; i < num_rows; i++) {
            begin(i);
            active[i] = i;
        }
        while (!active.empty()) {
            skipped_steps(active);
            active.erase(std::remove_if(active.begin(), active.end(), [&](int64_t i) { return finished(i); }), active.end());
            updates(active);
        }
        if (grads.sums) add_weight_gradients();
    }

  private:
    static constexpr int64_t SUMMED = 256;  // updates whose weight gradients are added at a time
    static constexpr int64_t CHUNK = 96;    // candidates at a time: enough for full tiles, small enough for the cache

    struct Row {
        int64_t segment, end;  // the current segment, and the step after its last valid one
        T a, b;                // adjoints of the accumulated ũ and of p
        T *adjoint;            // of the state; kept where its final value belongs
    };
    struct Step {
        int64_t row, t;
        T alpha;  // ũ, or with given gates the slope
    };

    const Network<T, C> &net;
    const ForwardInputs &inputs;
    const Trace &trace;
    const OutputGrads &output_grads;
    const PreactivationGrads &grads;
    const int64_t block, first, num_rows;
    std::vector<Row> rows;
    Workspace<T, C> work;
    Rows<T> candidates, hidden, reset, recent;
    std::vector<Step> steps;
    std::vector<int64_t> pending;  // updates whose weight gradients are still to be added

    const int64_t *entry(int64_t segment) const { return trace.index + 4 * segment; }
    int64_t time(int64_t segment) const { return entry(segment)[1]; }
    int64_t previous(int64_t segment) const { return entry(segment)[2]; }
    T prob(int64_t segment) const { return static_cast<const T *>(trace.prob)[segment]; }
    const T *state(int64_t segment) const { return static_cast<const T *>(trace.states) + segment * net.state_size(); }
    const T *saved(int64_t segment, int64_t l) const {
        return static_cast<const T *>(trace.saved) + ((segment - inputs.B) * inputs.L + l) * SAVED<C> * net.P;
    }
    T start(int64_t segment) const { return segment < inputs.B ? static_cast<const T *>(inputs.accumulated)[segment] : T(0); }
    T given(const void *tensor, int64_t i) const { return tensor ? static_cast<const T *>(tensor)[i] : T(0); }

    void add_output(const Row &row, int64_t b, int64_t t) const {
        if (!output_grads.output) return;
        const T *from = static_cast<const T *>(output_grads.output) + t * output_grads.output_stride_t + b * output_grads.output_stride_b;
        T *to = net.h_of(row.adjoint, inputs.L - 1);
        for (int64_t j = 0; j < inputs.H; j++) to[j] += from[j];
    }

    void begin(int64_t i) {
        Row &row = rows[i];
        const int64_t b = first + i;
        row.adjoint = static_cast<T *>(grads.states) + b * net.state_size();
        std::fill_n(row.adjoint, net.state_size(), T(0));
        for (int64_t l = 0; l < inputs.L; l++) {
            T *to = net.h_of(row.adjoint, l);
            const int64_t from = (l * inputs.B + b) * inputs.H;
            if (output_grads.h) std::copy_n(static_cast<const T *>(output_grads.h) + from, inputs.H, to);
            if (C == Cell::lstm && output_grads.c) std::copy_n(static_cast<const T *>(output_grads.c) + from, inputs.H, to + net.P);
        }
        row.a = given(output_grads.accumulated, b);
        row.b = given(output_grads.update_prob, b);
        row.end = net.length(b);
        for (int64_t t = inputs.T - 1; t >= row.end; t--) add_output(row, b, t);
    }

    bool finished(int64_t i) const {
        const Row &row = rows[i];
        if (row.segment >= inputs.B) return false;
        static_cast<T *>(grads.update_prob)[first + i] = row.b;
        static_cast<T *>(grads.accumulated)[first + i] = row.a;
        return true;
    }

    // Through the skipped steps of the current segments, each row's in descending time.
    void skipped_steps(const std::vector<int64_t> &active) {
        steps.clear();
        for (const int64_t i : active) {
            const Row &row = rows[i];
            const size_t begin = steps.size();
            T a = start(row.segment);
            const T p = prob(row.segment);
            for (int64_t t = time(row.segment) + 1; t < row.end; t++) {
                const T before = a;
                a = accumulate(p, a);
                // Given gates need the slope instead: their accumulation may have been cut at 1.
                steps.push_back({i, t, inputs.gates ? slope(p, before) : a});
            }
            std::reverse(steps.begin() + begin, steps.end());
        }
        if (inputs.gates) {
            for (const Step &step : steps) {
                Row &row = rows[step.row];
                add_output(row, first + step.row, step.t);
                row.a *= step.alpha;
                row.b += row.a;
            }
            return;
        }
        for (size_t from = 0; from < steps.size(); from += CHUNK) chunk(from, std::min<int64_t>(CHUNK, steps.size() - from));
    }

    // n skipped steps: first the candidates that were not taken, all at once, then the adjoints step by step.
    void chunk(size_t from, int64_t n) {
        const T *x[CHUNK], *product[CHUNK], *old_state[CHUNK];
        const int64_t width = PRODUCTS<C> * net.P;
        for (int64_t k = 0; k < n; k++) {
            const Step &step = steps[from + k];
            x[k] = net.input_row(step.t, first + step.row);
            old_state[k] = state(rows[step.row].segment);
        }
        for (int64_t l = 0; l < inputs.L; l++) {
            for (int64_t k = 0; k < n; k++) {
                const int64_t slot = entry(rows[steps[from + k].row].segment)[3];
                product[k] = static_cast<const T *>(trace.held) + (slot * inputs.L + l) * width;
            }
            net.candidate(l, n, x, product, old_state, candidates.at.data(), nullptr, work);
            for (int64_t k = 0; k < n; k++) x[k] = net.h_of(static_cast<const T *>(candidates.at[k]), l);
        }
        for (int64_t k = 0; k < n; k++) {
            const Step &step = steps[from + k];
            Row &row = rows[step.row];
            add_output(row, first + step.row, step.t);
            const T e = given(output_grads.gates, step.t * inputs.B + first + step.row) + change(row.adjoint, candidates.at[k], old_state[k]) +
                        row.b * (net.update_probability(candidates.at[k]) - prob(row.segment)) + row.a * (1 - step.alpha);
            row.a = e;
            row.b += e;
        }
    }

    // ⟨adjoint, new − old⟩ over the whole state.
    T change(const T *adjoint, const T *new_state, const T *old_state) const {
        Vec<T> total{};
        for (int64_t j = 0; j < net.state_size(); j += WIDTH<T>) total += load(adjoint + j) * (load(new_state + j) - load(old_state + j));
        return sum<T>(total);
    }

    // Through the updates that began the current segments: the ones before become current.
    void updates(const std::vector<int64_t> &active) {
        for (const int64_t i : active) gate(i);
        for (int64_t l = inputs.L - 1; l >= 0; l--) cell(active, l);
        for (const int64_t i : active) {
            Row &row = rows[i];
            if (grads.sums) pending.push_back(row.segment);
            row.end = time(row.segment);
            row.segment = previous(row.segment);
        }
        if (grads.sums && pending.size() >= SUMMED) add_weight_gradients();
    }

    // The gate of row i's update: its adjoint, and what p adds to the state's.
    void gate(int64_t i) {
        Row &row = rows[i];
        const int64_t b = first + i, s = row.segment, s_before = previous(s);
        add_output(row, b, time(s));
        const T p = prob(s), logit = row.b * p * (1 - p);
        T e = 0;
        if (!inputs.gates) {
            T a = start(s_before);
            const T before = prob(s_before);
            for (int64_t t = time(s_before) + 1; t < time(s); t++) a = accumulate(before, a);
            e = given(output_grads.gates, time(s) * inputs.B + b) + change(row.adjoint, state(s), state(s_before)) + row.b * (p - before) -
                row.a * accumulate(before, a);
            e *= slope(before, a);
        }
        static_cast<T *>(grads.logit)[s - inputs.B] = logit;
        T *to = row.adjoint + net.top();
        for (int64_t j = 0; j < net.P; j += WIDTH<T>) store(to + j, load(to + j) + logit * load(net.gate.data() + j));
        row.a = row.b = e;
    }

    // Where the adjoint of an update's pre-activations goes: kept for the caller, or until the weight gradients are added.
    T *pre_activation(int64_t segment, size_t slot, int64_t l) {
        if (!grads.pre_activation) return recent.at[slot] + l * GATES<C> * net.P;
        return static_cast<T *>(grads.pre_activation) + ((segment - inputs.B) * inputs.L + l) * GATES<C> * net.P;
    }

    // Through the cell of layer l: the adjoints of its new state become those of the old one, and of the layer below.
    void cell(const std::vector<int64_t> &active, int64_t l) {
        const int64_t n = active.size(), P = net.P;
        const Layer<T> &layer = net.layers[l];
        std::vector<const T *> pre(n), product(n), d_value(n);
        std::vector<T *> dh(n), below(n);
        for (int64_t k = 0; k < n; k++) {
            const Row &row = rows[active[k]];
            const int64_t s = row.segment;
            const T *old = net.h_of(state(previous(s)), l);
            T *d = pre_activation(s, pending.size() + k, l);
            dh[k] = net.h_of(row.adjoint, l);
            below[k] = l > 0 ? net.h_of(row.adjoint, l - 1) : nullptr;
            pre[k] = d;
            product[k] = C == Cell::gru_reset_after ? hidden.at[k] : d;
            d_value[k] = d + 2 * P;
            if constexpr (C == Cell::lstm)
                lstm_backward(P, saved(s, l), old, net.h_of(state(s), l), dh[k], d);
            else
                gru_backward<T, C>(P, saved(s, l), old, dh[k], d, hidden.at[k]);
        }
        if constexpr (C == Cell::gru) {
            multiply(n, d_value.data(), layer.reset_t, reset.at.data(), false);
            for (int64_t k = 0; k < n; k++) {
                const int64_t s = rows[active[k]].segment;
                gru_reset_backward(P, saved(s, l), net.h_of(state(previous(s)), l), reset.at[k], dh[k], const_cast<T *>(pre[k]));
            }
        }
        multiply(n, product.data(), layer.recurrent_t, dh.data(), C != Cell::lstm);
        if (l > 0) multiply(n, pre.data(), layer.input_t, below.data(), true);
    }

    // For each layer: by weight_ih (G·P, its input padded to 16), by weight_hh (G·P, P), by bias_ih (G·P), by b_hn (P).
    void add_weight_gradients() {
        const int64_t n = pending.size(), P = net.P, height = GATES<C> * P;
        std::vector<const T *> d(n), d_n(n), h(n), h_n(n), x(n);
        Rows<T> input, reset_h;
        T *sums = static_cast<T *>(grads.sums) + block * grads.sums_size;
        for (int64_t l = 0; l < inputs.L; l++) {
            const int64_t width = l == 0 ? padded(inputs.D) : P;
            T *by_input = sums, *by_hidden = by_input + height * width, *bias = by_hidden + height * P, *hidden_bias = bias + height;
            sums = hidden_bias + P;
            if (l == 0 && inputs.D % PAD) input.resize(n, width);
            if (C != Cell::lstm) reset_h.resize(n, P);
            for (int64_t k = 0; k < n; k++) {
                const int64_t s = pending[k];
                d[k] = pre_activation(s, k, l);
                d_n[k] = d[k] + 2 * P;
                h[k] = h_n[k] = net.h_of(state(previous(s)), l);
                x[k] = l > 0 ? net.h_of(state(s), l - 1) : net.x_row(time(s), entry(s)[0]);
                if (l == 0 && inputs.D % PAD) x[k] = std::copy_n(x[k], inputs.D, input.at[k]) - inputs.D;
                for (int64_t j = 0; j < height; j += WIDTH<T>) store(bias + j, load(bias + j) + load(d[k] + j));
                if constexpr (C == Cell::lstm) continue;
                // In block n of a GRU r comes in between: before the matrix it is on h's side, after it on the gradient's.
                const T *r = saved(s, l), *other = C == Cell::gru ? h[k] : d_n[k];
                for (int64_t j = 0; j < P; j += WIDTH<T>) store(reset_h.at[k] + j, load(r + j) * load(other + j));
                if (C == Cell::gru) h_n[k] = reset_h.at[k];
                if (C == Cell::gru_reset_after) {
                    d_n[k] = reset_h.at[k];
                    for (int64_t j = 0; j < P; j += WIDTH<T>) store(hidden_bias + j, load(hidden_bias + j) + load(d_n[k] + j));
                }
            }
            add_outer(n, d.data(), height, x.data(), width, by_input);
            add_outer(n, d.data(), C == Cell::lstm ? height : 2 * P, h.data(), P, by_hidden);
            if (C != Cell::lstm) add_outer(n, d_n.data(), P, h_n.data(), P, by_hidden + 2 * P * P);
        }
        pending.clear();
    }
};

template <typename T, Cell C>
void run_backward(const Network<T, C> &net, const Trace &trace, const OutputGrads &output_grads, const PreactivationGrads &grads) {
    std::vector<int64_t> last(net.inputs.B);
    for (int64_t s = 0; s < net.inputs.B + trace.num_updates; s++) last[trace.index[4 * s]] = s;
    parallel(net.num_blocks, [&](int64_t block) { Backward<T, C>(net, trace, output_grads, grads, last, block).run(); });
}

}  // namespace
