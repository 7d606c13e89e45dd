// Skip RNN on the CPU, in event order: every row jumps from update to update, forward and backward. These are the entry points.
//
// Campos et al., ICLR 2018; equation numbers are the paper's. docs/fast-layers.md has the mathematics of the exact straight-through
// gradient, and why a skipped step costs no recurrent product.
//
// A thread owns a block of rows for the whole sequence, so threads never wait for each other. Rows of the block that update
// together share one matrix product with weights packed once. No library is needed: C++17 and GCC's or Clang's vectors.
//
// All headers are part of this one translation unit. They define everything in unnamed namespaces, so that the compiler may inline
// functions that are called once.
//
// Letters: B batch, T steps, D features, H hidden, P = H rounded up to 16 (the rest is zero), L layers, G gate blocks of a cell
// (LSTM 4, GRU 3), K state vectors of a layer (LSTM 2: h, c; GRU 1: h), E updates, S = B + E segments.

#include "backward.h"
#include "forward.h"
#include "interface.h"

namespace {

template <typename T, typename Run> void dispatch(const ForwardInputs &inputs, bool backward, const Run &run) {
    if (inputs.cell == 0)
        run(Network<T, Cell::lstm>(inputs, backward));
    else if (inputs.cell == 1)
        run(Network<T, Cell::gru>(inputs, backward));
    else
        run(Network<T, Cell::gru_reset_after>(inputs, backward));
}

template <typename T> void forward(const ForwardInputs *inputs, ForwardOutputs *outputs, Trace *trace) {
    dispatch<T>(*inputs, false, [&](const auto &network) { run_forward(network, *outputs, trace); });
}

template <typename T>
void backward(const ForwardInputs *inputs, const Trace *trace, const OutputGrads *output_grads, PreactivationGrads *grads) {
    dispatch<T>(*inputs, true, [&](const auto &network) { run_backward(network, *trace, *output_grads, *grads); });
}

// 0, or 1 where memory ran out, the only error that can be thrown: an exception must not reach the caller, which is not C++.
template <typename Call> int guarded(const Call &call) noexcept {
    try {
        call();
        return 0;
    } catch (...) {
        return 1;
    }
}

}  // namespace

extern "C" {
int skip_rnn_forward_float(const ForwardInputs *inputs, ForwardOutputs *outputs, Trace *trace) {
    return guarded([&] { forward<float>(inputs, outputs, trace); });
}
int skip_rnn_forward_double(const ForwardInputs *inputs, ForwardOutputs *outputs, Trace *trace) {
    return guarded([&] { forward<double>(inputs, outputs, trace); });
}
int skip_rnn_backward_float(const ForwardInputs *inputs, const Trace *trace, const OutputGrads *output_grads, PreactivationGrads *grads) {
    return guarded([&] { backward<float>(inputs, trace, output_grads, grads); });
}
int skip_rnn_backward_double(const ForwardInputs *inputs, const Trace *trace, const OutputGrads *output_grads, PreactivationGrads *grads) {
    return guarded([&] { backward<double>(inputs, trace, output_grads, grads); });
}
}
