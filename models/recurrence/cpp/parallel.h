// Threads.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

// Runs work(0) … work(n − 1) in parallel. The threads are torch's own where there is OpenMP: they spin for a while after one
// of torch's operators, and would take the cores from any others. Denormal numbers are flushed to zero, because they are a
// hundred times slower and gradients that die out over a long sequence become denormal. An exception that left a thread
// would end the process: the first one is kept, and thrown again when all threads are done.
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

}  // namespace
