// Skip RNN on the CPU, in event order: every row jumps from update to update, forward and backward.
//
// Campos et al., ICLR 2018; equation numbers are the paper's. The mathematics of the exact straight-through gradient, and why a
// skipped step costs no recurrent product, is in docs/fast-layers.md. The contract of the buffers is models/recurrence/interface.py.
//
// A thread owns a block of rows for the whole sequence, so that nothing waits for anything. Rows of the block that update
// together share one matrix product against weights packed once. No library is needed: C++17 and GCC's or Clang's vectors.
//
// Letters: B batch, T steps, D features, H hidden, P = H rounded up to 16 (the rest is zero), L layers, G gate blocks of a cell
// (LSTM 4, GRU 3), K state vectors of a layer (LSTM 2: h, c; GRU 1: h), E updates, S = B + E segments.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

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

extern "C" {
// All tensors are dense in their last dimension. Strides count elements. A null pointer stands for an absent tensor.
struct Problem {
    int64_t num_threads, T, B, D, H, L, cell;  // cell: 0 lstm, 1 gru, 2 gru_reset_after
    const void *x;
    int64_t x_stride_t, x_stride_b;
    const void *h, *c, *update_prob, *accumulated;  // (L, B, H) twice, (B,) twice
    const void *const *weights;                     // L times weight_ih, weight_hh, bias_ih, bias_hh
    const void *update_weight, *update_bias;
    const int64_t *lengths;  // (B,)
    const uint8_t *gates;    // (T, B): recorded gates
    // (T, B, G·P), filled by the forward for its backward: the first layer's W x of valid steps. Null: computed where it is read.
    void *projection;
};

struct Trace {  // capacity: S = B + T·B, E = T·B
    void *states, *saved, *held, *prob;
    int64_t *index;
    int64_t num_updates, num_held;  // out
};

struct Answer {
    void *output;
    int64_t output_stride_t, output_stride_b;
    void *h, *c, *update_prob, *accumulated, *gates;
};

struct Incoming {
    const void *output;
    int64_t output_stride_t, output_stride_b;
    const void *h, *c, *update_prob, *accumulated, *gates;
};

struct Adjoints {
    void *pre_activation, *logit, *states, *update_prob, *accumulated;
    // Null, or zeros for each block of rows: the weights' gradients, see
    // add_weight_gradients. Without them pre_activation must be there.
    void *sums;
    int64_t sums_size;
};
}

namespace {

constexpr int64_t PAD = 16;

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

// float64 is for checking: exact, one value at a time.
inline Vec<double> tanh_(Vec<double> x) {
    for (int i = 0; i < WIDTH<double>; i++) x[i] = std::tanh(x[i]);
    return x;
}

inline Vec<double> sigmoid_(Vec<double> x) {
    for (int i = 0; i < WIDTH<double>; i++) x[i] = 1 / (1 + std::exp(-x[i]));
    return x;
}

// Runs work(0) … work(n − 1) side by side: where there is OpenMP in torch's own threads, because after torch's operators
// those turn idly for a while, and would take the cores from any others. Gradients that die out over a long sequence
// become denormal numbers, which are a hundred times slower: they are flushed to zero. An exception that left a thread would
// end the process: the first one is kept, and thrown again here when all threads are done.
template <typename Work> void parallel(int64_t n, const Work &work) {
    std::exception_ptr failure;
    std::mutex failing;
    const auto run = [&](int64_t i) {
#if defined(__SSE__)
        const unsigned before = _mm_getcsr();
        _mm_setcsr(before | 0x8040);
#endif
        try {
            work(i);
        } catch (...) {
            const std::lock_guard<std::mutex> guard(failing);
            if (!failure) failure = std::current_exception();
        }
#if defined(__SSE__)
        _mm_setcsr(before);
#endif
    };
#if defined(_OPENMP)
#pragma omp parallel for num_threads(n) schedule(static, 1) if (n > 1)
    for (int64_t i = 0; i < n; i++) run(i);
#else
    std::vector<std::thread> threads;
    threads.reserve(n);
    for (int64_t i = 0; i < n; i++) {
        try {
            if (i + 1 < n) threads.emplace_back(run, i);
            else run(i);
        } catch (...) {
            run(i);  // no other thread can be started: this one does its work
        }
    }
    for (auto &thread : threads) thread.join();
#endif
    if (failure) std::rethrow_exception(failure);
}

// A matrix (rows, columns) in panels of two vectors' width, each panel contiguous by row.
template <typename T> struct Packed {
    int64_t rows = 0, columns = 0;
    std::vector<T> data;

    // Zeros; columns must be a multiple of 16.
    void resize(int64_t rows_, int64_t columns_) {
        rows = rows_, columns = columns_;
        data.assign(rows * columns, T(0));
    }

    // The column from here down: its k-th value stands at [k * panel_width(column)].
    T *column(int64_t j) {
        const int64_t panel = j / (2 * WIDTH<T>) * (2 * WIDTH<T>);
        return data.data() + panel * rows + (j - panel);
    }
    int64_t panel_width(int64_t j) const { return std::min<int64_t>(2 * WIDTH<T>, columns - j / (2 * WIDTH<T>) * (2 * WIDTH<T>)); }
};

template <typename T, int R, int N> inline void tile(const T *const *a, int64_t depth, const T *b, T *const *c, bool add) {
    Vec<T> sums[R][N];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) sums[r][n] = add ? load(c[r] + n * WIDTH<T>) : Vec<T>{};
    for (int64_t k = 0; k < depth; k++, b += N * WIDTH<T>) {
        Vec<T> row[N];
        for (int n = 0; n < N; n++) row[n] = load(b + n * WIDTH<T>);
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) sums[r][n] += a[r][k] * row[n];
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) store(c[r] + n * WIDTH<T>, sums[r][n]);
}

template <typename T, int N, int R = TILE_ROWS>
inline void tile_of(int64_t rows, const T *const *a, int64_t depth, const T *b, T *const *c, bool add) {
    if (rows == R)
        tile<T, R, N>(a, depth, b, c, add);
    else if constexpr (R > 1)
        tile_of<T, N, R - 1>(rows, a, depth, b, c, add);
}

// c[i] = a[i] · b, or c[i] += a[i] · b, for rows given by pointers: a[i] of b.rows values, c[i] of b.columns.
template <typename T>
void multiply(int64_t rows, const T *const *a, const Packed<T> &b, T *const *c, bool add) {
    if (rows == 0) return;
    const int64_t num_tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, step = (rows + num_tiles - 1) / num_tiles;
    for (int64_t first = 0; first < b.columns; first += 2 * WIDTH<T>) {
        const T *panel = b.data.data() + first * b.rows;
        for (int64_t row = 0; row < rows; row += step) {
            const int64_t count = std::min(step, rows - row);
            T *to[TILE_ROWS];
            for (int64_t r = 0; r < count; r++) to[r] = c[row + r] + first;
            if (b.columns - first >= 2 * WIDTH<T>)
                tile_of<T, 2>(count, a + row, b.rows, panel, to, add);
            else
                tile_of<T, 1>(count, a + row, b.rows, panel, to, add);
        }
    }
}

template <typename T, int R, int N>
inline void outer_tile(int64_t n, const T *const *a, int64_t i, const T *const *b, int64_t j, T *c, int64_t width) {
    Vec<T> sums[R][N];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < N; v++) sums[r][v] = load(c + (i + r) * width + j + v * WIDTH<T>);
    for (int64_t k = 0; k < n; k++) {
        const T *from = a[k] + i;
        Vec<T> row[N];
        for (int v = 0; v < N; v++) row[v] = load(b[k] + j + v * WIDTH<T>);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < N; v++) sums[r][v] += from[r] * row[v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < N; v++) store(c + (i + r) * width + j + v * WIDTH<T>, sums[r][v]);
}

// c += Σ_k a[k] · b[k]ᵀ: c (height, width) dense, height and width multiples of 16.
template <typename T>
void add_outer(int64_t n, const T *const *a, int64_t height, const T *const *b, int64_t width, T *c) {
    constexpr int R = 8;
    for (int64_t j = 0; j < width; j += 2 * WIDTH<T>)
        for (int64_t i = 0; i < height; i += R)
            if (width - j >= 2 * WIDTH<T>)
                outer_tile<T, R, 2>(n, a, i, b, j, c, width);
            else
                outer_tile<T, R, 1>(n, a, i, b, j, c, width);
}

inline int64_t padded(int64_t n) { return (n + PAD - 1) / PAD * PAD; }

enum class Cell { lstm, gru, gru_reset_after };

template <Cell C> constexpr int64_t GATES = C == Cell::lstm ? 4 : 3;
template <Cell C> constexpr int64_t STATES = C == Cell::lstm ? 2 : 1;
// Blocks of the product h · Uᵀ that need nothing of x: a GRU that resets before the product keeps U_n apart.
template <Cell C> constexpr int64_t PRODUCTS = C == Cell::lstm ? 4 : C == Cell::gru ? 2 : 3;
template <Cell C> constexpr int64_t SAVED = C == Cell::gru ? 3 : 4;

template <typename T> struct Layer {
    Packed<T> input, recurrent, reset;           // Wᵀ; Uᵀ; a GRU's U_nᵀ
    Packed<T> input_t, recurrent_t, reset_t;     // W; U; U_n, for the backward
    std::vector<T> bias, hidden_bias;            // (G·P); b_hn of gru_reset_after (P)
};

template <typename T> struct Rows {  // a batch of scratch rows
    std::vector<T> data;
    std::vector<T *> at;
    void resize(int64_t rows, int64_t width) {
        data.assign(rows * width, T(0));
        at.resize(rows);
        for (int64_t i = 0; i < rows; i++) at[i] = data.data() + i * width;
    }
};

template <typename T> inline T dot(const T *a, const T *b, int64_t n) {
    Vec<T> total{};
    for (int64_t j = 0; j < n; j += WIDTH<T>) total += load(a + j) * load(b + j);
    return sum<T>(total);
}

template <typename T> inline T accumulate(T p, T a) { return a + std::min(p, 1 - a); }  // eq. 5

// The derivative of min(p, 1 − a) by p, which is also that of a + min(p, 1 − a) by a; torch halves it at a tie.
template <typename T> inline T slope(T p, T a) { return p < 1 - a ? T(1) : p > 1 - a ? T(0) : T(0.5); }

template <typename T> inline T scalar_sigmoid(T x) { return 1 / (1 + std::exp(-x)); }

template <typename T, Cell C> class Network {
  public:
    Network(const Problem &problem, bool backward) : q(problem), H(problem.H), P(padded(problem.H)), layers(problem.L) {
        for (int64_t l = 0; l < q.L; l++) pack(l, backward);
        gate.assign(P, T(0));
        std::copy_n(static_cast<const T *>(q.update_weight), H, gate.data());
        gate_bias = *static_cast<const T *>(q.update_bias);
        num_blocks = std::max<int64_t>(1, std::min(q.num_threads, q.B));
    }

    void forward(Answer &answer, Trace *trace) const {
        std::vector<Region> regions(num_blocks);
        if (q.projection) parallel(num_blocks, [&](int64_t block) { project(block); });
        parallel(num_blocks, [&](int64_t block) { regions[block] = Forward(*this, answer, trace, block).run(); });
        if (trace) compact(*trace, regions);
    }

    void backward(const Trace &trace, const Incoming &incoming, Adjoints &adjoints) const {
        std::vector<int64_t> last(q.B);
        for (int64_t s = 0; s < q.B + trace.num_updates; s++) last[trace.index[4 * s]] = s;
        parallel(num_blocks, [&](int64_t block) { Backward(*this, trace, incoming, adjoints, last, block).run(); });
    }

  private:
    struct Region { int64_t num_updates, num_held; };

    const Problem &q;
    const int64_t H, P;
    std::vector<Layer<T>> layers;
    std::vector<T> gate;
    T gate_bias;
    int64_t num_blocks;

    int64_t state_size() const { return q.L * STATES<C> * P; }
    int64_t first_row(int64_t block) const { return q.B * block / num_blocks; }
    int64_t length(int64_t row) const { return q.lengths ? q.lengths[row] : q.T; }
    const T *x_row(int64_t t, int64_t row) const { return static_cast<const T *>(q.x) + t * q.x_stride_t + row * q.x_stride_b; }
    const T *input_row(int64_t t, int64_t row) const { return q.projection ? projected(t, row) : x_row(t, row); }
    const T *h_of(const T *state, int64_t l) const { return state + l * STATES<C> * P; }
    T *h_of(T *state, int64_t l) const { return state + l * STATES<C> * P; }
    // What the update gate reads: c of an LSTM's top layer, h of a GRU's.
    int64_t top() const { return (q.L * STATES<C> - 1) * P; }

    // work(0) … work(n − 1), by all threads where that is much.
    template <typename Work> void shared(int64_t n, int64_t size, const Work &work) const {
        const int64_t threads = size < 65536 ? 1 : std::min(q.num_threads, n);
        parallel(threads, [&](int64_t thread) {
            for (int64_t i = n * thread / threads; i < n * (thread + 1) / threads; i++) work(i);
        });
    }

    void pack(int64_t l, bool backward) {
        const auto weight = [&](int64_t i) { return static_cast<const T *>(q.weights[4 * l + i]); };
        const T *w = weight(0), *u = weight(1), *b_ih = weight(2), *b_hh = weight(3);
        // Column g·P + j of a packed Wᵀ is row g·H + j of W.
        const auto transposed = [&](Packed<T> &to, const T *matrix, int64_t depth, int64_t first, int64_t blocks) {
            to.resize(depth, blocks * P);
            shared(blocks * H, depth * blocks * H, [&](int64_t i) {
                const T *from = matrix + (first * H + i) * depth;
                T *column = to.column(i / H * P + i % H);
                const int64_t step = to.panel_width(i / H * P + i % H);
                for (int64_t k = 0; k < depth; k++) column[k * step] = from[k];
            });
        };
        const auto plain = [&](Packed<T> &to, const T *matrix, int64_t first, int64_t blocks) {
            to.resize(blocks * P, P);
            shared(H, blocks * H * H, [&](int64_t j) {
                T *column = to.column(j);
                const int64_t step = to.panel_width(j);
                for (int64_t i = 0; i < blocks * H; i++) column[(i / H * P + i % H) * step] = matrix[(first * H + i) * H + j];
            });
        };
        Layer<T> &layer = layers[l];
        transposed(layer.input, w, l == 0 ? q.D : H, 0, GATES<C>);
        transposed(layer.recurrent, u, H, 0, PRODUCTS<C>);
        if (C == Cell::gru) transposed(layer.reset, u, H, 2, 1);
        if (backward) {
            if (l > 0) plain(layer.input_t, w, 0, GATES<C>);
            plain(layer.recurrent_t, u, 0, PRODUCTS<C>);
            if (C == Cell::gru) plain(layer.reset_t, u, 2, 1);
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

    T *projected(int64_t t, int64_t row) const { return static_cast<T *>(q.projection) + (t * q.B + row) * GATES<C> * P; }

    void project(int64_t block) const {
        std::vector<const T *> x;
        std::vector<T *> to;
        for (int64_t t = 0; t < q.T; t++) {
            for (int64_t row = first_row(block); row < first_row(block + 1); row++)
                if (t < length(row)) x.push_back(x_row(t, row)), to.push_back(projected(t, row));
            if (x.size() >= 256 || t == q.T - 1) {
                multiply<T>(x.size(), x.data(), layers[0].input, to.data(), false);
                x.clear(), to.clear();
            }
        }
    }

    // Each block wrote at its own offset; close the gaps, so that segments are numbered without holes.
    void compact(Trace &trace, const std::vector<Region> &regions) const {
        int64_t updates = 0, held = 0;
        const auto move = [](void *base, int64_t to, int64_t from, int64_t count, int64_t width) {
            if (to != from) std::memmove(static_cast<T *>(base) + to * width, static_cast<T *>(base) + from * width, count * width * sizeof(T));
        };
        const auto renumber = [&](int64_t s, int64_t update_shift, int64_t held_shift) {
            if (trace.index[4 * s + 2] >= q.B) trace.index[4 * s + 2] -= update_shift;
            if (trace.index[4 * s + 3] >= 0) trace.index[4 * s + 3] -= held_shift;
        };
        for (int64_t block = 0; block < num_blocks; block++) {
            const int64_t from = first_row(block) * q.T, held_from = from + first_row(block), n = regions[block].num_updates;
            move(trace.states, q.B + updates, q.B + from, n, state_size());
            move(trace.prob, q.B + updates, q.B + from, n, 1);
            move(trace.saved, updates, from, n, q.L * SAVED<C> * P);
            move(trace.held, held, held_from, regions[block].num_held, q.L * PRODUCTS<C> * P);
            std::memmove(trace.index + 4 * (q.B + updates), trace.index + 4 * (q.B + from), 4 * n * sizeof(int64_t));
            for (int64_t row = first_row(block); row < first_row(block + 1); row++) renumber(row, 0, held_from - held);
            for (int64_t s = q.B + updates; s < q.B + updates + n; s++) renumber(s, from - updates, held_from - held);
            updates += n;
            held += regions[block].num_held;
        }
        trace.num_updates = updates;
        trace.num_held = held;
    }

    // Scratch for one batch of candidates.
    struct Workspace {
        Rows<T> input, product, reset, reset_product;
        void resize(const Network &net, int64_t rows) {
            input.resize(rows, GATES<C> * net.P);
            product.resize(rows, PRODUCTS<C> * net.P);
            if (C == Cell::gru) reset.resize(rows, net.P), reset_product.resize(rows, net.P);
        }
    };

    // s̃ = S(s, x) of layer l for n rows, given the products h · Uᵀ. x: the layer's input, or W x where it is already known.
    // saved: null, or where the gates' values go.
    void candidate(int64_t l, int64_t n, const T *const *x, const T *const *product, const T *const *old_state, T *const *new_state,
                   T *const *saved, Workspace &work) const {
        const Layer<T> &layer = layers[l];
        const bool known = l == 0 && q.projection;
        const T *const *input = known ? x : const_cast<const T *const *>(work.input.at.data());
        if (!known) multiply(n, x, layer.input, work.input.at.data(), false);
        const T *bias = layer.bias.data();
        if constexpr (C == Cell::gru) {
            for (int64_t i = 0; i < n; i++) {
                const T *in = input[i], *u = product[i], *h = h_of(old_state[i], l);
                T *reset = work.reset.at[i];
                for (int64_t j = 0; j < P; j += WIDTH<T>) {
                    const Vec<T> r = sigmoid_(load(in + j) + load(u + j) + load(bias + j));
                    if (saved) store(saved[i] + j, r);
                    store(reset + j, r * load(h + j));
                }
            }
            multiply(n, const_cast<const T *const *>(work.reset.at.data()), layer.reset, work.reset_product.at.data(), false);
        }
        for (int64_t i = 0; i < n; i++) {
            const T *in = input[i], *u = product[i], *h = h_of(old_state[i], l), *c = h + P;
            T *h_new = h_of(new_state[i], l), *c_new = h_new + P, *keep = saved ? saved[i] : nullptr;
            for (int64_t j = 0; j < P; j += WIDTH<T>) {
                const auto pre = [&](int64_t g) { return load(in + g * P + j) + load(u + g * P + j) + load(bias + g * P + j); };
                if constexpr (C == Cell::lstm) {
                    const Vec<T> gi = sigmoid_(pre(0)), gf = sigmoid_(pre(1)), gg = tanh_(pre(2)), go = sigmoid_(pre(3));
                    const Vec<T> cn = gf * load(c + j) + gi * gg;
                    store(c_new + j, cn);
                    store(h_new + j, go * tanh_(cn));
                    if (keep) store(keep + j, gi), store(keep + P + j, gf), store(keep + 2 * P + j, gg), store(keep + 3 * P + j, go);
                } else {
                    const Vec<T> z = sigmoid_(pre(1)), x_n = load(in + 2 * P + j) + load(bias + 2 * P + j), old = load(h + j);
                    Vec<T> value;
                    if constexpr (C == Cell::gru) {
                        value = tanh_(x_n + load(work.reset_product.at[i] + j));
                    } else {
                        const Vec<T> r = sigmoid_(pre(0)), h_n = load(u + 2 * P + j) + load(layer.hidden_bias.data() + j);
                        value = tanh_(x_n + r * h_n);
                        if (keep) store(keep + j, r), store(keep + 3 * P + j, h_n);
                    }
                    if (keep) store(keep + P + j, z), store(keep + 2 * P + j, value);
                    store(h_new + j, value + z * (old - value));
                }
            }
        }
    }

    T update_probability(const T *state) const {  // eq. 4
        return scalar_sigmoid(dot(state + top(), gate.data(), P) + gate_bias);
    }

    class Forward {
      public:
        Forward(const Network &network, const Answer &answer_, Trace *trace_, int64_t block)
            : net(network), q(network.q), answer(answer_), trace(trace_), first(network.first_row(block)),
              num_rows(network.first_row(block + 1) - first) {
            const int64_t state = net.state_size();
            rows.resize(num_rows);
            if (trace) {
                next_update = first * q.T;
                next_held = first * q.T + first;
            } else {
                spare.resize(2 * num_rows, state);
            }
            work.resize(net, num_rows);
        }

        Region run() {
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
            if (trace && !q.gates) {
                std::vector<int64_t> holding;
                for (int64_t i = 0; i < num_rows; i++)
                    if (rows[i].length - rows[i].time > 1) holding.push_back(i);
                for (int64_t l = 0; l < q.L; l++) products(holding, l);
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
            int flip;
        };

        const Network &net;
        const Problem &q;
        const Answer &answer;
        Trace *trace;
        const int64_t first, num_rows;
        int64_t next_update = 0, next_held = 0;
        std::vector<Row> rows;
        Rows<T> spare;
        Workspace work;

        void begin(int64_t i) {
            Row &row = rows[i];
            const int64_t b = first + i, state = net.state_size();
            row.segment = b;
            row.flip = 0;
            row.state = trace ? static_cast<T *>(trace->states) + b * state : spare.at[2 * i];
            std::fill_n(row.state, state, T(0));
            for (int64_t l = 0; l < q.L; l++) {
                std::copy_n(static_cast<const T *>(q.h) + (l * q.B + b) * q.H, q.H, net.h_of(row.state, l));
                if (C == Cell::lstm) std::copy_n(static_cast<const T *>(q.c) + (l * q.B + b) * q.H, q.H, net.h_of(row.state, l) + net.P);
            }
            row.p = static_cast<const T *>(q.update_prob)[b];
            row.a = static_cast<const T *>(q.accumulated)[b];
            row.time = -1;
            row.length = net.length(b);
            if (trace) {
                note(row, b, -1);
                static_cast<T *>(trace->prob)[b] = row.p;
            }
            look_ahead(row, b);
            for (int64_t t = 0; t < q.T; t++) gate(t, b) = 0;
            write_output(row, b);
        }

        T &gate(int64_t t, int64_t b) const { return static_cast<T *>(answer.gates)[t * q.B + b]; }

        void note(const Row &row, int64_t b, int64_t previous) const {
            int64_t *entry = trace->index + 4 * row.segment;
            entry[0] = b, entry[1] = row.time, entry[2] = previous, entry[3] = -1;
        }

        // The jump: eq. 5 run ahead until an update or the end. Leaves a as it is just before `next`.
        void look_ahead(Row &row, int64_t b) const {
            int64_t t = row.time + 1;
            for (; t < row.length; t++) {
                const T a = accumulate(row.p, row.a);
                if (q.gates ? q.gates[t * q.B + b] != 0 : a > T(0.5)) break;
                row.a = a;
            }
            row.next = t;
        }

        T *output(int64_t t, int64_t b) const {
            return static_cast<T *>(answer.output) + t * answer.output_stride_t + b * answer.output_stride_b;
        }

        // Of its latest update alone, or of step 0.
        void write_output(const Row &row, int64_t b) const {
            std::copy_n(net.h_of(static_cast<const T *>(row.state), q.L - 1), q.H, output(std::max<int64_t>(row.time, 0), b));
        }

        // Skipped steps repeat the output before them. All of them at the end, in the order in which they lie in memory.
        void hold_outputs() const {
            const int64_t end = first + num_rows, stride = answer.output_stride_b;
            if (answer.output_stride_t < stride) {
                for (int64_t b = first; b < end; b++)
                    for (int64_t t = 1; t < q.T; t++)
                        if (gate(t, b) == 0) std::copy_n(output(t - 1, b), q.H, output(t, b));
                return;
            }
            for (int64_t t = 1; t < q.T; t++)
                for (int64_t b = first, next; b < end; b = next + 1) {  // neighbours that skip, all at once
                    for (next = b; next < end && gate(t, next) == 0;) next++;
                    if (next > b) std::copy_n(output(t - 1, b), (next - b - 1) * stride + q.H, output(t, b));
                }
        }

        // h · Uᵀ of layer l for some rows; kept where the row held its state, for the candidates of the steps it skipped.
        void products(const std::vector<int64_t> &which, int64_t l) {
            std::vector<const T *> h(which.size());
            for (size_t k = 0; k < which.size(); k++) h[k] = net.h_of(static_cast<const T *>(rows[which[k]].state), l);
            multiply<T>(which.size(), h.data(), net.layers[l].recurrent, work.product.at.data(), false);
            if (!trace || q.gates) return;
            const int64_t width = PRODUCTS<C> * net.P;
            int64_t slot = next_held;
            for (size_t k = 0; k < which.size(); k++) {
                const Row &row = rows[which[k]];
                if (row.next - row.time <= 1) continue;
                std::copy_n(work.product.at[k], width, static_cast<T *>(trace->held) + (slot * q.L + l) * width);
                trace->index[4 * row.segment + 3] = slot++;
            }
        }

        void update(const std::vector<int64_t> &due) {
            const int64_t n = due.size(), state = net.state_size();
            std::vector<const T *> x(n), old_state(n);
            std::vector<T *> new_state(n), saved(n);
            int64_t num_holding = 0;
            for (int64_t k = 0; k < n; k++) {
                const Row &row = rows[due[k]];
                x[k] = net.input_row(row.next, first + due[k]);
                old_state[k] = row.state;
                new_state[k] = trace ? static_cast<T *>(trace->states) + (q.B + next_update + k) * state : spare.at[2 * due[k] + 1 - row.flip];
                num_holding += row.next - row.time > 1;
            }
            for (int64_t l = 0; l < q.L; l++) {
                products(due, l);
                if (trace)
                    for (int64_t k = 0; k < n; k++)
                        saved[k] = static_cast<T *>(trace->saved) + ((next_update + k) * q.L + l) * SAVED<C> * net.P;
                net.candidate(l, n, x.data(), work.product.at.data(), old_state.data(), new_state.data(), trace ? saved.data() : nullptr, work);
                for (int64_t k = 0; k < n; k++) x[k] = net.h_of(new_state[k], l);
            }
            if (trace && !q.gates) next_held += num_holding;
            for (int64_t k = 0; k < n; k++) {
                Row &row = rows[due[k]];
                const int64_t b = first + due[k], previous = row.segment;
                row.state = new_state[k];
                row.flip = 1 - row.flip;
                row.p = net.update_probability(row.state);
                row.a = 0;
                row.time = row.next;
                gate(row.time, b) = 1;
                if (trace) {
                    row.segment = q.B + next_update + k;
                    note(row, b, previous);
                    static_cast<T *>(trace->prob)[row.segment] = row.p;
                }
                look_ahead(row, b);
                write_output(row, b);
            }
            next_update += trace ? n : 0;
        }

        void finish(int64_t i) const {
            const Row &row = rows[i];
            const int64_t b = first + i;
            for (int64_t l = 0; l < q.L; l++) {
                const T *h = net.h_of(static_cast<const T *>(row.state), l);
                std::copy_n(h, q.H, static_cast<T *>(answer.h) + (l * q.B + b) * q.H);
                if (C == Cell::lstm) std::copy_n(h + net.P, q.H, static_cast<T *>(answer.c) + (l * q.B + b) * q.H);
            }
            static_cast<T *>(answer.update_prob)[b] = row.p;
            static_cast<T *>(answer.accumulated)[b] = row.a;
        }
    };

    class Backward {
      public:
        Backward(const Network &network, const Trace &trace_, const Incoming &incoming_, const Adjoints &adjoints_,
                 const std::vector<int64_t> &last, int64_t block_)
            : net(network), q(network.q), trace(trace_), incoming(incoming_), adjoints(adjoints_), block(block_),
              first(network.first_row(block)), num_rows(network.first_row(block + 1) - first) {
            const int64_t state = net.state_size();
            rows.resize(num_rows);
            for (int64_t i = 0; i < num_rows; i++) rows[i].segment = last[first + i];
            if (!adjoints.pre_activation) recent.resize(SUMMED + num_rows, q.L * GATES<C> * net.P);
            work.resize(net, CHUNK);
            candidates.resize(CHUNK, state);
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
                held_steps(active);
                active.erase(std::remove_if(active.begin(), active.end(), [&](int64_t i) { return finished(i); }), active.end());
                updates(active);
            }
            if (adjoints.sums) add_weight_gradients();
        }

      private:
        static constexpr int64_t SUMMED = 256;  // updates whose weight gradients are added at a time
        static constexpr int64_t CHUNK = 96;  // candidates at a time: enough for full tiles, small enough for the cache

        struct Row {
            int64_t segment, end;  // the segment in hand, and the step after its last valid one
            T a, b;                // adjoints of the accumulated ũ and of p
            T *adjoint;            // of the state; kept where its final value belongs
        };
        struct Step { int64_t row, t; T alpha; };

        const Network &net;
        const Problem &q;
        const Trace &trace;
        const Incoming &incoming;
        const Adjoints &adjoints;
        const int64_t block, first, num_rows;
        std::vector<Row> rows;
        Workspace work;
        Rows<T> candidates, hidden, reset, recent;
        std::vector<Step> steps;
        std::vector<int64_t> pending;  // updates whose weight gradients are still to be added

        const int64_t *entry(int64_t segment) const { return trace.index + 4 * segment; }
        int64_t time(int64_t segment) const { return entry(segment)[1]; }
        T prob(int64_t segment) const { return static_cast<const T *>(trace.prob)[segment]; }
        const T *state(int64_t segment) const { return static_cast<const T *>(trace.states) + segment * net.state_size(); }
        T start(int64_t segment) const { return segment < q.B ? static_cast<const T *>(q.accumulated)[segment] : T(0); }
        T given(const void *tensor, int64_t i) const { return tensor ? static_cast<const T *>(tensor)[i] : T(0); }

        void add_output(const Row &row, int64_t b, int64_t t) const {
            if (!incoming.output) return;
            const T *from = static_cast<const T *>(incoming.output) + t * incoming.output_stride_t + b * incoming.output_stride_b;
            T *to = net.h_of(row.adjoint, q.L - 1);
            for (int64_t j = 0; j < q.H; j++) to[j] += from[j];
        }

        void begin(int64_t i) {
            Row &row = rows[i];
            const int64_t b = first + i;
            row.adjoint = static_cast<T *>(adjoints.states) + b * net.state_size();
            std::fill_n(row.adjoint, net.state_size(), T(0));
            for (int64_t l = 0; l < q.L; l++) {
                T *to = net.h_of(row.adjoint, l);
                if (incoming.h) std::copy_n(static_cast<const T *>(incoming.h) + (l * q.B + b) * q.H, q.H, to);
                if (C == Cell::lstm && incoming.c) std::copy_n(static_cast<const T *>(incoming.c) + (l * q.B + b) * q.H, q.H, to + net.P);
            }
            row.a = given(incoming.accumulated, b);
            row.b = given(incoming.update_prob, b);
            row.end = net.length(b);
            for (int64_t t = q.T - 1; t >= row.end; t--) add_output(row, b, t);
        }

        bool finished(int64_t i) const {
            const Row &row = rows[i];
            if (row.segment >= q.B) return false;
            static_cast<T *>(adjoints.update_prob)[first + i] = row.b;
            static_cast<T *>(adjoints.accumulated)[first + i] = row.a;
            return true;
        }

        // The skipped steps of the segments in hand, each row's in descending time.
        void held_steps(const std::vector<int64_t> &active) {
            steps.clear();
            for (const int64_t i : active) {
                const Row &row = rows[i];
                const size_t begin = steps.size();
                T a = start(row.segment);
                const T p = prob(row.segment);
                for (int64_t t = time(row.segment) + 1; t < row.end; t++) {
                    const T before = a;
                    a = accumulate(p, a);
                    // Recorded gates need the slope instead: their accumulation may have been cut at 1.
                    steps.push_back({i, t, q.gates ? slope(p, before) : a});
                }
                std::reverse(steps.begin() + begin, steps.end());
            }
            if (q.gates) {
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

        void chunk(size_t from, int64_t n) {
            const T *x[CHUNK], *product[CHUNK], *old_state[CHUNK];
            const int64_t width = PRODUCTS<C> * net.P;
            for (int64_t k = 0; k < n; k++) {
                const Step &step = steps[from + k];
                x[k] = net.input_row(step.t, first + step.row);
                old_state[k] = state(rows[step.row].segment);
            }
            for (int64_t l = 0; l < q.L; l++) {
                for (int64_t k = 0; k < n; k++) {
                    const int64_t slot = entry(rows[steps[from + k].row].segment)[3];
                    product[k] = static_cast<const T *>(trace.held) + (slot * q.L + l) * width;
                }
                net.candidate(l, n, x, product, old_state, candidates.at.data(), nullptr, work);
                for (int64_t k = 0; k < n; k++) x[k] = net.h_of(static_cast<const T *>(candidates.at[k]), l);
            }
            for (int64_t k = 0; k < n; k++) {
                const Step &step = steps[from + k];
                Row &row = rows[step.row];
                add_output(row, first + step.row, step.t);
                const T e = given(incoming.gates, step.t * q.B + first + step.row) + change(row.adjoint, candidates.at[k], old_state[k]) +
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

        void updates(const std::vector<int64_t> &active) {
            for (const int64_t i : active) {
                Row &row = rows[i];
                const int64_t b = first + i, s = row.segment, previous = entry(s)[2];
                add_output(row, b, time(s));
                const T p = prob(s), logit = row.b * p * (1 - p);
                T e = 0;
                if (!q.gates) {
                    T a = start(previous);
                    const T before = prob(previous);
                    for (int64_t t = time(previous) + 1; t < time(s); t++) a = accumulate(before, a);
                    e = given(incoming.gates, time(s) * q.B + b) + change(row.adjoint, state(s), state(previous)) + row.b * (p - before) -
                        row.a * accumulate(before, a);
                    e *= slope(before, a);
                }
                static_cast<T *>(adjoints.logit)[s - q.B] = logit;
                T *to = row.adjoint + net.top();
                for (int64_t j = 0; j < net.P; j += WIDTH<T>) store(to + j, load(to + j) + logit * load(net.gate.data() + j));
                row.a = row.b = e;
            }
            for (int64_t l = q.L - 1; l >= 0; l--) cell(active, l);
            for (const int64_t i : active) {
                if (adjoints.sums) pending.push_back(rows[i].segment);
                rows[i].end = time(rows[i].segment);
                rows[i].segment = entry(rows[i].segment)[2];
            }
            if (adjoints.sums && pending.size() >= SUMMED) add_weight_gradients();
        }

        // Where the adjoint of an update's pre-activations goes: kept for the caller, or until the weight gradients are added.
        T *pre_activation(int64_t segment, size_t slot, int64_t l) {
            if (!adjoints.pre_activation) return recent.at[slot] + l * GATES<C> * net.P;
            return static_cast<T *>(adjoints.pre_activation) + ((segment - q.B) * q.L + l) * GATES<C> * net.P;
        }

        // For each layer: by weight_ih (G·P, its input padded to 16), by weight_hh (G·P, P), by bias_ih (G·P), by b_hn (P).
        void add_weight_gradients() {
            const int64_t n = pending.size(), P = net.P, height = GATES<C> * P;
            std::vector<const T *> d(n), d_n(n), h(n), h_n(n), x(n);
            Rows<T> input, reset_h;
            T *sums = static_cast<T *>(adjoints.sums) + block * adjoints.sums_size;
            for (int64_t l = 0; l < q.L; l++) {
                const int64_t width = l == 0 ? padded(q.D) : P;
                T *by_input = sums, *by_hidden = by_input + height * width, *bias = by_hidden + height * P, *hidden_bias = bias + height;
                sums = hidden_bias + P;
                if (l == 0 && q.D % PAD) input.resize(n, width);
                if (C != Cell::lstm) reset_h.resize(n, P);
                for (int64_t k = 0; k < n; k++) {
                    const int64_t s = pending[k];
                    const T *saved = static_cast<const T *>(trace.saved) + ((s - q.B) * q.L + l) * SAVED<C> * P;
                    d[k] = pre_activation(s, k, l);
                    d_n[k] = d[k] + 2 * P;
                    h[k] = h_n[k] = net.h_of(state(entry(s)[2]), l);
                    x[k] = l > 0 ? net.h_of(state(s), l - 1) : net.x_row(time(s), entry(s)[0]);
                    if (l == 0 && q.D % PAD) x[k] = std::copy_n(x[k], q.D, input.at[k]) - q.D;
                    for (int64_t j = 0; j < height; j += WIDTH<T>) store(bias + j, load(bias + j) + load(d[k] + j));
                    if constexpr (C == Cell::lstm) continue;
                    // In block n of a GRU r comes in between: before the matrix it is on h's side, after it on the gradient's.
                    const T *other = C == Cell::gru ? h[k] : d_n[k];
                    for (int64_t j = 0; j < P; j += WIDTH<T>) store(reset_h.at[k] + j, load(saved + j) * load(other + j));
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

        // Through the cell of layer l: the adjoints of its new state become those of the old one, and of the layer below.
        void cell(const std::vector<int64_t> &active, int64_t l) {
            const int64_t n = active.size(), P = net.P;
            const Layer<T> &layer = net.layers[l];
            std::vector<const T *> pre(n), product(n), d_value(n);
            std::vector<T *> dh(n), below(n);
            for (int64_t k = 0; k < n; k++) {
                const Row &row = rows[active[k]];
                const int64_t s = row.segment, e = s - q.B;
                const T *old = net.h_of(state(entry(s)[2]), l), *now = net.h_of(state(s), l);
                const T *saved = static_cast<const T *>(trace.saved) + (e * q.L + l) * SAVED<C> * P;
                T *d = pre_activation(s, pending.size() + k, l);
                dh[k] = net.h_of(row.adjoint, l);
                below[k] = l > 0 ? net.h_of(row.adjoint, l - 1) : nullptr;
                pre[k] = d;
                product[k] = C == Cell::gru_reset_after ? hidden.at[k] : d;
                d_value[k] = d + 2 * P;
                for (int64_t j = 0; j < P; j += WIDTH<T>) {
                    const auto block = [&](int64_t g) { return load(saved + g * P + j); };
                    const Vec<T> g_h = load(dh[k] + j);
                    if constexpr (C == Cell::lstm) {
                        const Vec<T> i = block(0), f = block(1), g = block(2), o = block(3), tanh_c = tanh_(load(now + P + j));
                        const Vec<T> g_c = load(dh[k] + P + j) + g_h * o * (1 - tanh_c * tanh_c);
                        store(d + j, g_c * g * i * (1 - i));
                        store(d + P + j, g_c * load(old + P + j) * f * (1 - f));
                        store(d + 2 * P + j, g_c * i * (1 - g * g));
                        store(d + 3 * P + j, g_h * tanh_c * o * (1 - o));
                        store(dh[k] + P + j, g_c * f);
                    } else {
                        const Vec<T> r = block(0), z = block(1), value = block(2);
                        const Vec<T> d_n = g_h * (1 - z) * (1 - value * value), d_z = g_h * (load(old + j) - value) * z * (1 - z);
                        store(d + P + j, d_z);
                        store(d + 2 * P + j, d_n);
                        store(dh[k] + j, g_h * z);
                        if constexpr (C == Cell::gru_reset_after) {
                            const Vec<T> d_r = d_n * block(3) * r * (1 - r);
                            store(d + j, d_r);
                            store(hidden.at[k] + j, d_r), store(hidden.at[k] + P + j, d_z), store(hidden.at[k] + 2 * P + j, d_n * r);
                        }
                    }
                }
            }
            if constexpr (C == Cell::gru) {
                multiply(n, d_value.data(), layer.reset_t, reset.at.data(), false);
                for (int64_t k = 0; k < n; k++) {
                    const int64_t s = rows[active[k]].segment;
                    const T *old = net.h_of(state(entry(s)[2]), l), *saved = static_cast<const T *>(trace.saved) + ((s - q.B) * q.L + l) * SAVED<C> * P;
                    T *d = const_cast<T *>(pre[k]);
                    for (int64_t j = 0; j < P; j += WIDTH<T>) {
                        const Vec<T> r = load(saved + j), d_rh = load(reset.at[k] + j);
                        store(d + j, d_rh * load(old + j) * r * (1 - r));
                        store(dh[k] + j, load(dh[k] + j) + d_rh * r);
                    }
                }
            }
            multiply(n, product.data(), layer.recurrent_t, dh.data(), C != Cell::lstm);
            if (l > 0) multiply(n, pre.data(), layer.input_t, below.data(), true);
        }
    };
};

template <typename T, typename Run> void dispatch(const Problem &problem, bool backward, const Run &run) {
    if (problem.cell == 0)
        run(Network<T, Cell::lstm>(problem, backward));
    else if (problem.cell == 1)
        run(Network<T, Cell::gru>(problem, backward));
    else
        run(Network<T, Cell::gru_reset_after>(problem, backward));
}

template <typename T> void forward(const Problem *problem, Answer *answer, Trace *trace) {
    dispatch<T>(*problem, false, [&](const auto &network) { network.forward(*answer, trace); });
}

template <typename T>
void backward(const Problem *problem, const Trace *trace, const Incoming *incoming, Adjoints *adjoints) {
    dispatch<T>(*problem, true, [&](const auto &network) { network.backward(*trace, *incoming, *adjoints); });
}

// 0, or 1 where memory ran out, the only thing that can be thrown here: an exception must not reach the caller, which is not C++.
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
int skip_rnn_forward_float(const Problem *problem, Answer *answer, Trace *trace) {
    return guarded([&] { forward<float>(problem, answer, trace); });
}
int skip_rnn_forward_double(const Problem *problem, Answer *answer, Trace *trace) {
    return guarded([&] { forward<double>(problem, answer, trace); });
}
int skip_rnn_backward_float(const Problem *problem, const Trace *trace, const Incoming *incoming, Adjoints *adjoints) {
    return guarded([&] { backward<float>(problem, trace, incoming, adjoints); });
}
int skip_rnn_backward_double(const Problem *problem, const Trace *trace, const Incoming *incoming, Adjoints *adjoints) {
    return guarded([&] { backward<double>(problem, trace, incoming, adjoints); });
}
}
