// Products of matrices whose rows are given by pointers, because the rows of a batch of updates lie far apart.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vector.h"

namespace {

constexpr int64_t PAD = 16;

inline int64_t padded(int64_t n) { return (n + PAD - 1) / PAD * PAD; }

// Scratch rows of zeros, and pointers to them.
template <typename T> struct Rows {
    std::vector<T> data;
    std::vector<T *> at;
    void resize(int64_t rows, int64_t width) {
        data.assign(rows * width, T(0));
        at.resize(rows);
        for (int64_t i = 0; i < rows; i++) at[i] = data.data() + i * width;
    }
};

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

}  // namespace
