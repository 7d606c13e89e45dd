// Runs every path of models/recurrence/cpp on exactly sized buffers, for the address and thread sanitizers; and runs out of
// memory at every place where it asks for some.
#include "../../../models/recurrence/cpp/skip_rnn.cpp"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>

namespace {

std::atomic<int64_t> allocations_left{INT64_MAX};

}  // namespace

void *operator new(std::size_t size) {
    if (allocations_left.fetch_sub(1) <= 0) throw std::bad_alloc();
    if (void *memory = std::malloc(size)) return memory;
    throw std::bad_alloc();
}
void operator delete(void *memory) noexcept { std::free(memory); }
void operator delete(void *memory, std::size_t) noexcept { std::free(memory); }

namespace {

// Lets the first, then the second, … allocation of a call fail, until it needs no more; how many failed.
template <typename Call> int64_t starve(const Call &call) {
    for (int64_t allowed = 0;; allowed++) {
        allocations_left = allowed;
        const int failed = call();
        allocations_left = INT64_MAX;
        if (!failed) return allowed;
    }
}

std::mt19937 generator(7);

template <typename T> std::vector<T> random(int64_t n, double scale = 0.5) {
    std::normal_distribution<double> normal(0, scale);
    std::vector<T> values(n);
    for (T &value : values) value = normal(generator);
    return values;
}

template <typename T> void run(int64_t cell, int64_t L, int64_t H, int64_t D, bool ragged, bool given, bool ahead, double bias, bool starved = false) {
    const int64_t T_ = 13, B = 5, G = cell == 0 ? 4 : 3, K = cell == 0 ? 2 : 1, Y = cell == 0 ? 4 : cell == 1 ? 2 : 3, X = cell == 1 ? 3 : 4;
    const int64_t P = (H + 15) / 16 * 16, E = T_ * B, S = B + E;
    auto x = random<T>(T_ * B * D), h = random<T>(L * B * H), c = random<T>(L * B * H), w_p = random<T>(H, 2);
    std::vector<T> p(B, T(ragged ? 0.2 : 1)), a(B, T(ragged ? 0.1 : 0)), b_p(1, T(bias)), projection(ahead ? T_ * B * G * P : 0);
    std::vector<std::vector<T>> weights;
    for (int64_t l = 0; l < L; l++) {
        weights.push_back(random<T>(G * H * (l == 0 ? D : H)));
        weights.push_back(random<T>(G * H * H));
        weights.push_back(random<T>(G * H));
        weights.push_back(random<T>(G * H));
    }
    std::vector<const void *> pointers;
    for (const auto &weight : weights) pointers.push_back(weight.data());
    const std::vector<int64_t> lengths{0, T_, 1, T_ / 2, T_};
    std::vector<uint8_t> gates(T_ * B);
    for (auto &gate : gates) gate = generator() % 3 == 0;
    const ForwardInputs inputs{3, T_, B, D, H, L, cell, x.data(), B * D, D, h.data(), cell == 0 ? c.data() : nullptr, p.data(), a.data(),
                          pointers.data(), w_p.data(), b_p.data(), ragged ? lengths.data() : nullptr, given ? gates.data() : nullptr,
                          ahead ? projection.data() : nullptr};
    std::vector<T> output(T_ * B * H), h_end(L * B * H), c_end(L * B * H), p_end(B), a_end(B), used(T_ * B);
    ForwardOutputs outputs{output.data(), B * H, H, h_end.data(), c_end.data(), p_end.data(), a_end.data(), used.data()};
    std::vector<T> states(S * L * K * P), saved(E * L * X * P), held(S * L * Y * P), prob(S);
    std::vector<int64_t> index(4 * S);
    Trace trace{states.data(), saved.data(), held.data(), prob.data(), index.data(), 0, 0};
    std::vector<T> pre(E * L * G * P), logit(E), by_states(B * L * K * P), by_p(B), by_a(B);
    const OutputGrads output_grads{output.data(), B * H, H, h_end.data(), cell == 0 ? c_end.data() : nullptr, p_end.data(), a_end.data(), used.data()};
    int64_t size = 0;
    for (int64_t l = 0; l < L; l++) size += G * P * ((l == 0 ? (D + 15) / 16 * 16 : P) + P + 1) + P;
    std::vector<T> sums(3 * size);
    PreactivationGrads grads{ahead ? pre.data() : nullptr, logit.data(), by_states.data(), by_p.data(), by_a.data(),
                      ahead && ragged ? nullptr : sums.data(), size};
    if constexpr (std::is_same_v<T, float>)
        if (starved) {
            if (starve([&] { return skip_rnn_forward_float(&inputs, &outputs, &trace); }) < 10) std::abort();
            if (starve([&] { return skip_rnn_backward_float(&inputs, &trace, &output_grads, &grads); }) < 10) std::abort();
            return;
        }
    if (!ahead) forward<T>(&inputs, &outputs, nullptr);
    forward<T>(&inputs, &outputs, &trace);
    backward<T>(&inputs, &trace, &output_grads, &grads);
    for (const T value : by_states)
        if (!(value == value)) std::abort();
}

}  // namespace

int main() {
    for (int64_t cell = 0; cell < 3; cell++)
        for (int variant = 0; variant < 8; variant++)
            for (const double bias : {30.0, -1.5, -30.0}) {
                run<float>(cell, 1 + variant % 3, variant % 2 ? 7 : 16, variant % 2 ? 3 : 1, variant & 1, variant & 2, variant & 4, bias);
                run<double>(cell, 1, 5, 2, variant & 1, variant & 2, variant & 4, bias);
            }
    for (int64_t cell = 0; cell < 3; cell++) run<float>(cell, 2, 7, 3, true, false, cell == 1, -1.5, true);
    std::puts("clean");
}
