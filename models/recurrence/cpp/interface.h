// What the library is called with: the structs of structures.py, field by field. models/recurrence/interface.py says what
// each tensor holds.
#pragma once

#include <cstdint>

extern "C" {
// All tensors are dense in their last dimension. Strides count elements. A null pointer stands for an absent tensor.
struct ForwardInputs {
    int64_t num_threads, T, B, D, H, L, cell;  // cell: 0 lstm, 1 gru, 2 gru_reset_after
    const void *x;
    int64_t x_stride_t, x_stride_b;
    const void *h, *c, *update_prob, *accumulated;  // (L, B, H) twice, (B,) twice
    const void *const *weights;                     // L times weight_ih, weight_hh, bias_ih, bias_hh
    const void *update_weight, *update_bias;
    const int64_t *lengths;  // (B,)
    const uint8_t *gates;    // (T, B): given gates
    // (T, B, G·P): W x of layer 0 at valid steps, which the forward fills in for its backward. Null: computed where it is read.
    void *projection;
};

struct Trace {  // capacity: S = B + T·B, E = T·B
    void *states, *saved, *held, *prob;
    int64_t *index;
    int64_t num_updates, num_held;  // written by the forward
};

struct ForwardOutputs {
    void *output;
    int64_t output_stride_t, output_stride_b;
    void *h, *c, *update_prob, *accumulated, *gates;
};

struct OutputGrads {
    const void *output;
    int64_t output_stride_t, output_stride_b;
    const void *h, *c, *update_prob, *accumulated, *gates;
};

struct PreactivationGrads {
    void *pre_activation, *logit, *states, *update_prob, *accumulated;
    // Zeros, a row of sums_size for each block of rows: `Backward::add_weight_gradients` adds the weights' gradients. Null if
    // the caller computes them from pre_activation, which must then be there.
    void *sums;
    int64_t sums_size;
};
}
