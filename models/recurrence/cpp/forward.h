// The forward: every row goes from update to update.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "network.h"

namespace {

struct BlockCounts {
    int64_t num_updates, num_held;
};

// The rows of one block, all of their steps. Their part of a trace starts where it would if all rows before them updated and
// held at every step; `close_gaps` moves it.
template <typename T, Cell C> class Forward {
  public:
    Forward(const Network<T, C> &network, const ForwardOutputs &outputs_, Trace *trace_, int64_t block)
        : net(network), inputs(network.inputs), outputs(outputs_), trace(trace_), first(network.first_row(block)),
          num_rows(network.first_row(block + 1) - first) {
        rows.resize(num_rows);
        if (trace) {
            next_update = first * inputs.T;
            next_held = first * inputs.T + first;
        } else {
            spare.resize(2 * num_rows, net.state_size());
        }
        work.resize(net.P, num_rows);
    }

    BlockCounts run() {
        const int64_t updates_before = next_update, held_before = next_held;
        std::vector<int64_t> due;
        for (int64_t i = 0; i < num_rows; i++) {
            begin(i);
            if (rows[i].next < rows[i].length) due.push_back(i);
        }
        while (!due.empty()) {
            update(due);
            due.erase(std::remove_if(due.begin(), due.end(), [&](int64_t i) { return rows[i].next >= rows[i].length; }), due.end());
        }
        if (trace && !inputs.gates) {
            std::vector<int64_t> holding;
            for (int64_t i = 0; i < num_rows; i++)
                if (rows[i].length - rows[i].time > 1) holding.push_back(i);
            for (int64_t l = 0; l < inputs.L; l++) products(holding, l);
            next_held += holding.size();
        }
        for (int64_t i = 0; i < num_rows; i++) finish(i);
        hold_outputs();
        return {next_update - updates_before, next_held - held_before};
    }

  private:
    struct Row {
        T *state;
        T p, a;
        int64_t time, next, length, segment;  // time of the last update, of the next one
        int flip;                             // which of its two spare states is `state`
    };

    const Network<T, C> &net;
    const ForwardInputs &inputs;
    const ForwardOutputs &outputs;
    Trace *trace;
    const int64_t first, num_rows;
    int64_t next_update = 0, next_held = 0;
    std::vector<Row> rows;
    Rows<T> spare;  // states where no trace keeps them
    Workspace<T, C> work;

    T &gate(int64_t t, int64_t b) const { return static_cast<T *>(outputs.gates)[t * inputs.B + b]; }

    T *output(int64_t t, int64_t b) const {
        return static_cast<T *>(outputs.output) + t * outputs.output_stride_t + b * outputs.output_stride_b;
    }

    void begin(int64_t i) {
        Row &row = rows[i];
        const int64_t b = first + i, state = net.state_size();
        row.segment = b;
        row.flip = 0;
        row.state = trace ? static_cast<T *>(trace->states) + b * state : spare.at[2 * i];
        std::fill_n(row.state, state, T(0));
        for (int64_t l = 0; l < inputs.L; l++) {
            T *h = net.h_of(row.state, l);
            std::copy_n(static_cast<const T *>(inputs.h) + (l * inputs.B + b) * inputs.H, inputs.H, h);
            if (C == Cell::lstm) std::copy_n(static_cast<const T *>(inputs.c) + (l * inputs.B + b) * inputs.H, inputs.H, h + net.P);
        }
        row.p = static_cast<const T *>(inputs.update_prob)[b];
        row.a = static_cast<const T *>(inputs.accumulated)[b];
        row.time = -1;
        row.length = net.length(b);
        if (trace) {
            write_index(row, b, -1);
            static_cast<T *>(trace->prob)[b] = row.p;
        }
        find_next_update(row, b);
        for (int64_t t = 0; t < inputs.T; t++) gate(t, b) = 0;
        write_output(row, b);
    }

    void finish(int64_t i) const {
        const Row &row = rows[i];
        const int64_t b = first + i;
        for (int64_t l = 0; l < inputs.L; l++) {
            const T *h = net.h_of(static_cast<const T *>(row.state), l);
            std::copy_n(h, inputs.H, static_cast<T *>(outputs.h) + (l * inputs.B + b) * inputs.H);
            if (C == Cell::lstm) std::copy_n(h + net.P, inputs.H, static_cast<T *>(outputs.c) + (l * inputs.B + b) * inputs.H);
        }
        static_cast<T *>(outputs.update_prob)[b] = row.p;
        static_cast<T *>(outputs.accumulated)[b] = row.a;
    }

    // Eq. 5 run ahead until an update or the end. Leaves a as it is just before `next`.
    void find_next_update(Row &row, int64_t b) const {
        int64_t t = row.time + 1;
        for (; t < row.length; t++) {
            const T a = accumulate(row.p, row.a);
            if (inputs.gates ? inputs.gates[t * inputs.B + b] != 0 : a > T(0.5)) break;
            row.a = a;
        }
        row.next = t;
    }

    // One update of each row in `due`.
    void update(const std::vector<int64_t> &due) {
        const int64_t n = due.size(), state = net.state_size();
        std::vector<const T *> x(n), old_state(n);
        std::vector<T *> new_state(n), saved(n);
        int64_t num_holding = 0;
        for (int64_t k = 0; k < n; k++) {
            const Row &row = rows[due[k]];
            x[k] = net.input_row(row.next, first + due[k]);
            old_state[k] = row.state;
            new_state[k] = trace ? static_cast<T *>(trace->states) + (inputs.B + next_update + k) * state : spare.at[2 * due[k] + 1 - row.flip];
            num_holding += row.next - row.time > 1;
        }
        for (int64_t l = 0; l < inputs.L; l++) {
            products(due, l);
            if (trace)
                for (int64_t k = 0; k < n; k++)
                    saved[k] = static_cast<T *>(trace->saved) + ((next_update + k) * inputs.L + l) * SAVED<C> * net.P;
            net.candidate(l, n, x.data(), work.product.at.data(), old_state.data(), new_state.data(), trace ? saved.data() : nullptr, work);
            for (int64_t k = 0; k < n; k++) x[k] = net.h_of(new_state[k], l);
        }
        if (trace && !inputs.gates) next_held += num_holding;
        for (int64_t k = 0; k < n; k++) commit(due[k], new_state[k], inputs.B + next_update + k);
        next_update += trace ? n : 0;
    }

    // Row i has updated, and is in `segment` with its new state.
    void commit(int64_t i, T *state, int64_t segment) {
        Row &row = rows[i];
        const int64_t b = first + i, previous = row.segment;
        row.state = state;
        row.flip = 1 - row.flip;
        row.p = net.update_probability(row.state);
        row.a = 0;
        row.time = row.next;
        gate(row.time, b) = 1;
        if (trace) {
            row.segment = segment;
            write_index(row, b, previous);
            static_cast<T *>(trace->prob)[row.segment] = row.p;
        }
        find_next_update(row, b);
        write_output(row, b);
    }

    // U h of layer l for some rows; kept where the row held its state, for the candidates of the steps it skipped.
    void products(const std::vector<int64_t> &which, int64_t l) {
        std::vector<const T *> h(which.size());
        for (size_t k = 0; k < which.size(); k++) h[k] = net.h_of(static_cast<const T *>(rows[which[k]].state), l);
        multiply<T>(which.size(), h.data(), net.layers[l].recurrent, work.product.at.data(), false);
        if (!trace || inputs.gates) return;
        const int64_t width = PRODUCTS<C> * net.P;
        int64_t slot = next_held;
        for (size_t k = 0; k < which.size(); k++) {
            const Row &row = rows[which[k]];
            if (row.next - row.time <= 1) continue;
            std::copy_n(work.product.at[k], width, static_cast<T *>(trace->held) + (slot * inputs.L + l) * width);
            trace->index[4 * row.segment + 3] = slot++;
        }
    }

    void write_index(const Row &row, int64_t b, int64_t previous) const {
        int64_t *entry = trace->index + 4 * row.segment;
        entry[0] = b, entry[1] = row.time, entry[2] = previous, entry[3] = -1;
    }

    // Of the latest update alone, or of step 0.
    void write_output(const Row &row, int64_t b) const {
        std::copy_n(net.h_of(static_cast<const T *>(row.state), inputs.L - 1), inputs.H, output(std::max<int64_t>(row.time, 0), b));
    }

    // Skipped steps repeat the output before them: all of them at the end, in the order in which they lie in memory.
    void hold_outputs() const {
        const int64_t end = first + num_rows, stride = outputs.output_stride_b;
        if (outputs.output_stride_t < stride) {
            for (int64_t b = first; b < end; b++)
                for (int64_t t = 1; t < inputs.T; t++)
                    if (gate(t, b) == 0) std::copy_n(output(t - 1, b), inputs.H, output(t, b));
            return;
        }
        for (int64_t t = 1; t < inputs.T; t++)
            for (int64_t b = first, next; b < end; b = next + 1) {  // neighbours that skip, all at once
                for (next = b; next < end && gate(t, next) == 0;) next++;
                if (next > b) std::copy_n(output(t - 1, b), (next - b - 1) * stride + inputs.H, output(t, b));
            }
    }
};

// W x of layer 0 at all valid steps of a block's rows.
template <typename T, Cell C> void project(const Network<T, C> &net, int64_t block) {
    std::vector<const T *> x;
    std::vector<T *> to;
    for (int64_t t = 0; t < net.inputs.T; t++) {
        for (int64_t row = net.first_row(block); row < net.first_row(block + 1); row++)
            if (t < net.length(row)) x.push_back(net.x_row(t, row)), to.push_back(net.projected(t, row));
        if (x.size() >= 256 || t == net.inputs.T - 1) {
            multiply<T>(x.size(), x.data(), net.layers[0].input, to.data(), false);
            x.clear(), to.clear();
        }
    }
}

// Each block wrote at its own offset: moves what it wrote, so that segments are numbered without holes.
template <typename T, Cell C> void close_gaps(const Network<T, C> &net, Trace &trace, const std::vector<BlockCounts> &counts) {
    const ForwardInputs &inputs = net.inputs;
    int64_t updates = 0, held = 0;
    const auto move = [](void *base, int64_t to, int64_t from, int64_t count, int64_t width) {
        if (to != from) std::memmove(static_cast<T *>(base) + to * width, static_cast<T *>(base) + from * width, count * width * sizeof(T));
    };
    const auto renumber = [&](int64_t s, int64_t update_shift, int64_t held_shift) {
        if (trace.index[4 * s + 2] >= inputs.B) trace.index[4 * s + 2] -= update_shift;
        if (trace.index[4 * s + 3] >= 0) trace.index[4 * s + 3] -= held_shift;
    };
    for (int64_t block = 0; block < net.num_blocks; block++) {
        const int64_t from = net.first_row(block) * inputs.T, held_from = from + net.first_row(block), n = counts[block].num_updates;
        move(trace.states, inputs.B + updates, inputs.B + from, n, net.state_size());
        move(trace.prob, inputs.B + updates, inputs.B + from, n, 1);
        move(trace.saved, updates, from, n, inputs.L * SAVED<C> * net.P);
        move(trace.held, held, held_from, counts[block].num_held, inputs.L * PRODUCTS<C> * net.P);
        std::memmove(trace.index + 4 * (inputs.B + updates), trace.index + 4 * (inputs.B + from), 4 * n * sizeof(int64_t));
        for (int64_t row = net.first_row(block); row < net.first_row(block + 1); row++) renumber(row, 0, held_from - held);
        for (int64_t s = inputs.B + updates; s < inputs.B + updates + n; s++) renumber(s, from - updates, held_from - held);
        updates += n;
        held += counts[block].num_held;
    }
    trace.num_updates = updates;
    trace.num_held = held;
}

template <typename T, Cell C> void run_forward(const Network<T, C> &net, const ForwardOutputs &outputs, Trace *trace) {
    std::vector<BlockCounts> counts(net.num_blocks);
    if (net.inputs.projection) parallel(net.num_blocks, [&](int64_t block) { project(net, block); });
    parallel(net.num_blocks, [&](int64_t block) { counts[block] = Forward<T, C>(net, outputs, trace, block).run(); });
    if (trace) close_gaps(net, *trace, counts);
}

}  // namespace
