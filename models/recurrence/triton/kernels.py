"""The Triton kernels that launch.py launches.

A program owns ROWS rows and goes from update to update, every row at a step of its own: it runs as often as the busiest
of its rows updates. What decides a gate is added up in float32, one rounding after another as in stepping.

Letters: B batch, T steps, H hidden, G gate blocks, A blocks that are saved, K state vectors (LSTM 2: h, c; GRU 1: h), E
updates in all rows, S = B + E segments, W = K·H + 3. first … fourth are the saved blocks: i, f, g, o or r, z, n, U_n h.

Constants of a compilation: CELL, its name; H; WIDTH, a power of two, H or more; STRIDE, of rows of the weights; GIVEN,
whether the gates are; OPERAND, a dtype: the recurrent weights stay in registers, tensor cores multiply in it and sum in
float32. If it is None all is float32. Such weights would fill a chip's registers, so each update reads them, from L1.
"""

# ruff: noqa: N803, N806 - constants of a compilation are in capitals
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"

import triton
import triton.language as tl

OPERANDS = {"float16": tl.float16, "bfloat16": tl.bfloat16, "float32": tl.float32}

_LOOK = tl.constexpr(8)
"""Steps of waiting between two looks at whether any row of a program still waits."""


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2 * _sigmoid(2 * x) - 1


@triton.jit
def _matrix(
    weight, gate: tl.constexpr, H: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, OPERAND: tl.constexpr
):
    """Block `gate` of weight (G, H, STRIDE): a tile, or where to read it."""
    matrix = weight + gate * H * STRIDE
    if OPERAND is not None:
        k, unit = tl.arange(0, WIDTH)[:, None], tl.arange(0, WIDTH)[None, :]
        matrix = tl.load(matrix + k * STRIDE + unit, mask=(k < H) & (unit < STRIDE), other=0.0).to(OPERAND)
    return matrix


@triton.jit
def _product(left, matrix, H: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, OPERAND: tl.constexpr):
    """left (ROWS, WIDTH) times a `_matrix`, whose rows are summed over."""
    if OPERAND is None:
        k, unit = tl.arange(0, WIDTH)[None, :, None], tl.arange(0, WIDTH)[None, None, :]
        block = tl.load(matrix + k * STRIDE + unit, mask=(k < H) & (unit < STRIDE), other=0.0)
        product = tl.sum(left[:, :, None] * block, 1)
    else:
        product = tl.dot(left.to(OPERAND), matrix, input_precision="ieee")
    return product


@triton.jit
def _adjoint_product(left, matrix, H: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, OPERAND: tl.constexpr):
    """The same for adjoints, which may be too small for a narrow dtype: each row relative to its largest one."""
    if OPERAND is None:
        product = _product(left, matrix, H, STRIDE, WIDTH, OPERAND)
    else:
        largest = tl.max(tl.abs(left), 1)[:, None]
        scale = tl.where(largest > 0, largest, 1.0)
        product = scale * _product(left / scale, matrix, H, STRIDE, WIDTH, OPERAND)
    return product


@triton.jit
def _wait(p, a, step, end, row, following, batch_size, GIVEN: tl.constexpr):
    """The step of each row's next update, or its end, and a there; all (ROWS,).

    following (T + 1, B): the first given update from a step on. A learned one is found by adding up, as stepping does;
    a p that is not a number is never due.
    """
    waiting = step < end
    if GIVEN:
        due = tl.load(following + step.to(tl.int64) * batch_size + row, mask=waiting, other=0)
        step = tl.where(waiting & (due < end), due, step)
        waiting = waiting & (due >= end)
    while tl.max(waiting.to(tl.int32), 0) > 0:
        for _ in tl.static_range(_LOOK):
            room = 1 - a
            added = a + tl.where(p > room, room, p)
            if not GIVEN:
                waiting = waiting & ~(added > 0.5)
            a = tl.where(waiting, added, a)
            step += waiting.to(tl.int32)
            waiting = waiting & (step < end)
    return step, a


@triton.jit
def forward_kernel(
    projection,  # W x + b, G·H numbers at row · row_stride + step · step_stride
    row_stride,
    step_stride,
    weight,  # (G, H, STRIDE): U of each block, transposed
    bias_n,  # (H,): of U_n h in a GRU with reset after
    update_weight,  # (H,)
    update_bias,  # (1,)
    ends,  # (B,) int32: each row's number of valid steps
    following,  # (T + 1, B) int32 if GIVEN
    h_last,  # (B, H), and so on: what rows start with, and then what they end with
    c_last,
    prob_last,
    accumulated_last,
    states,  # (B, T + 1, K, H), K = 1 unless SAVE: what the update of step t makes goes to place t + 1
    saved,  # (B, T, A, H)
    prob,  # (B, T + 1)
    gates,  # (B, T), zeros
    num_steps,
    batch_size,
    CELL: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    OPERAND: tl.constexpr,
    GIVEN: tl.constexpr,
    SAVE: tl.constexpr,
):
    LSTM: tl.constexpr = CELL == "lstm"
    AFTER: tl.constexpr = CELL == "gru_reset_after"
    STATE: tl.constexpr = 2 * H if LSTM and SAVE else H
    SAVED: tl.constexpr = 3 * H if CELL == "gru" else 4 * H
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = tl.arange(0, WIDTH)
    exists, inside = row < batch_size, unit < H
    own = exists[:, None] & inside[None, :]
    vector = (row * H)[:, None] + unit[None, :]
    u_0 = _matrix(weight, 0, H, STRIDE, WIDTH, OPERAND)
    u_1 = _matrix(weight, 1, H, STRIDE, WIDTH, OPERAND)
    u_2 = _matrix(weight, 2, H, STRIDE, WIDTH, OPERAND)
    if LSTM:
        u_3 = _matrix(weight, 3, H, STRIDE, WIDTH, OPERAND)
        c = tl.load(c_last + vector, mask=own, other=0.0)
    if AFTER:
        hidden_bias = tl.load(bias_n + unit, mask=inside, other=0.0)[None, :]
    gate_weight = tl.load(update_weight + unit, mask=inside, other=0.0)[None, :]
    gate_bias = tl.load(update_bias)
    h = tl.load(h_last + vector, mask=own, other=0.0)
    p = tl.load(prob_last + row, mask=exists, other=0.0)
    a = tl.load(accumulated_last + row, mask=exists, other=0.0)
    end = tl.load(ends + row, mask=exists, other=0)
    step, a = _wait(p, a, tl.zeros_like(end), end, row, following, batch_size, GIVEN)
    while tl.max((step < end).to(tl.int32), 0) > 0:
        active = step < end
        some = active[:, None] & inside[None, :]
        x = projection + (row * row_stride + step.to(tl.int64) * step_stride)[:, None] + unit[None, :]
        x_0 = tl.load(x, mask=some, other=0.0)
        x_1 = tl.load(x + H, mask=some, other=0.0)
        x_2 = tl.load(x + 2 * H, mask=some, other=0.0)
        if LSTM:
            x_3 = tl.load(x + 3 * H, mask=some, other=0.0)
            third = _tanh(x_2 + _product(h, u_2, H, STRIDE, WIDTH, OPERAND))
            fourth = _sigmoid(x_3 + _product(h, u_3, H, STRIDE, WIDTH, OPERAND))
        first = _sigmoid(x_0 + _product(h, u_0, H, STRIDE, WIDTH, OPERAND))
        second = _sigmoid(x_1 + _product(h, u_1, H, STRIDE, WIDTH, OPERAND))
        if LSTM:
            top = second * c + first * third
            h_new = fourth * _tanh(top)
            c = tl.where(active[:, None], top, c)
        else:
            if AFTER:
                fourth = _product(h, u_2, H, STRIDE, WIDTH, OPERAND) + hidden_bias
                third = _tanh(x_2 + first * fourth)
            else:
                third = _tanh(x_2 + _product(first * h, u_2, H, STRIDE, WIDTH, OPERAND))
            h_new = third + second * (h - third)
            top = h_new
        p_new = _sigmoid(tl.sum(top * gate_weight, 1) + gate_bias)
        place = row * num_steps + step
        place_after = place + row + 1
        state = states + (place_after * STATE)[:, None] + unit[None, :]
        tl.store(state, h_new, mask=some)
        tl.store(gates + place, 1.0, mask=active)
        if SAVE:
            block = saved + (place * SAVED)[:, None] + unit[None, :]
            tl.store(block, first, mask=some)
            tl.store(block + H, second, mask=some)
            tl.store(block + 2 * H, third, mask=some)
            if LSTM or AFTER:
                tl.store(block + 3 * H, fourth, mask=some)
            if LSTM:
                tl.store(state + H, top, mask=some)
            tl.store(prob + place_after, p_new, mask=active)
        h = tl.where(active[:, None], h_new, h)
        p = tl.where(active, p_new, p)
        a = tl.where(active, 0.0, a)
        step, a = _wait(p, a, step + active.to(tl.int32), end, row, following, batch_size, GIVEN)
    tl.debug_barrier()  # until every warp has read what it started with
    tl.store(h_last + vector, h, mask=own)
    if LSTM:
        tl.store(c_last + vector, c, mask=own)
    tl.store(prob_last + row, p, mask=exists)
    tl.store(accumulated_last + row, a, mask=exists)


@triton.jit
def _before_wait(waiting, segment, alive, by_h, by_c, by_a, by_p, unit, LSTM: tl.constexpr, H: tl.constexpr):
    """The adjoint of a or of p, whichever waiting (S, W) is for, at the start of segments from what is behind them."""
    STATE: tl.constexpr = 2 * H if LSTM else H
    part = waiting + segment * (STATE + 3)
    vector = part[:, None] + unit[None, :]
    some = alive[:, None] & (unit < H)[None, :]
    by_state = by_h * tl.load(vector, mask=some, other=0.0)
    if LSTM:
        by_state += by_c * tl.load(vector + H, mask=some, other=0.0)
    total = tl.sum(by_state, 1) + by_a * tl.load(part + STATE, mask=alive, other=0.0)
    total += by_p * tl.load(part + STATE + 1, mask=alive, other=0.0)
    return total + tl.load(part + STATE + 2, mask=alive, other=0.0)


@triton.jit
def backward_kernel(
    index,  # (S, 4) int64, as in `Trace`
    last,  # (B,) int64: each row's last segment
    states,  # (S, K, H)
    saved,  # (E, A, H)
    prob,  # (S,)
    weight,  # (G, H, STRIDE)
    update_weight,  # (H,)
    reached,  # (T, B, H) if OUTPUTS: the adjoint of h at each step from the outputs of its segment, there and later
    terms,  # (E, 3) unless GIVEN, and so on: `GateTerms`
    clamp,  # (E,)
    waiting_a,  # (S, W) if WAITED, and so is waiting_p
    waiting_p,
    adjoints,  # (B, W): of states, a and p behind each row's last segment, and then at its start
    pre,  # (E, G, H)
    logit,  # (E,)
    batch_size,
    CELL: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    OPERAND: tl.constexpr,
    GIVEN: tl.constexpr,
    WAITED: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    LSTM: tl.constexpr = CELL == "lstm"
    AFTER: tl.constexpr = CELL == "gru_reset_after"
    STATE: tl.constexpr = 2 * H if LSTM else H
    SAVED: tl.constexpr = 3 * H if CELL == "gru" else 4 * H
    GATES: tl.constexpr = 4 * H if LSTM else 3 * H
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = tl.arange(0, WIDTH)
    exists, inside = row < batch_size, unit < H
    own = exists[:, None] & inside[None, :]
    u_0 = _matrix(weight, 0, H, STRIDE, WIDTH, OPERAND)
    u_1 = _matrix(weight, 1, H, STRIDE, WIDTH, OPERAND)
    u_2 = _matrix(weight, 2, H, STRIDE, WIDTH, OPERAND)
    if LSTM:
        u_3 = _matrix(weight, 3, H, STRIDE, WIDTH, OPERAND)
    gate_weight = tl.load(update_weight + unit, mask=inside, other=0.0)[None, :]
    rest = adjoints + row * (STATE + 3) + STATE
    vector = rest[:, None] - STATE + unit[None, :]
    by_h = tl.load(vector, mask=own, other=0.0)
    by_c = by_h
    if LSTM:
        by_c = tl.load(vector + H, mask=own, other=0.0)
    by_a = tl.load(rest, mask=exists, other=0.0)
    by_p = tl.load(rest + 1, mask=exists, other=0.0)
    segment = tl.load(last + row, mask=exists, other=-1)
    held_first = exists
    while tl.max(segment, 0) >= batch_size:
        active = segment >= batch_size
        some = active[:, None] & inside[None, :]
        update = segment - batch_size
        step = tl.load(index + segment * 4 + 1, mask=active, other=0)
        previous = tl.load(index + segment * 4 + 2, mask=active, other=0)
        state = states + (segment * STATE)[:, None] + unit[None, :]
        state_before = states + (previous * STATE)[:, None] + unit[None, :]
        h = tl.load(state, mask=some, other=0.0)
        h_before = tl.load(state_before, mask=some, other=0.0)
        block = saved + (update * SAVED)[:, None] + unit[None, :]
        first = tl.load(block, mask=some, other=0.0)
        second = tl.load(block + H, mask=some, other=0.0)
        third = tl.load(block + 2 * H, mask=some, other=0.0)
        p = tl.load(prob + segment, mask=active, other=0.0)
        a_start, p_start = by_a, by_p
        if WAITED:
            a_start = _before_wait(waiting_a, segment, active, by_h, by_c, by_a, by_p, unit, LSTM, H)
            p_start = _before_wait(waiting_p, segment, active, by_h, by_c, by_a, by_p, unit, LSTM, H)
        d_h = by_h
        if OUTPUTS:
            output = reached + ((step * batch_size + row) * H)[:, None] + unit[None, :]
            d_h += tl.load(output, mask=some, other=0.0)
        by_gate = d_h * (h - h_before)
        d_logit = p_start * p * (1 - p)
        tl.store(logit + update, d_logit, mask=active)
        delta = pre + (update * GATES)[:, None] + unit[None, :]
        if LSTM:
            fourth = tl.load(block + 3 * H, mask=some, other=0.0)
            c = tl.load(state + H, mask=some, other=0.0)
            c_before = tl.load(state_before + H, mask=some, other=0.0)
            by_gate += by_c * (c - c_before)
            tanh_c = _tanh(c)
            d_c = by_c + d_logit[:, None] * gate_weight + d_h * fourth * (1 - tanh_c * tanh_c)
            d_0 = d_c * third * first * (1 - first)
            d_1 = d_c * c_before * second * (1 - second)
            d_2 = d_c * first * (1 - third * third)
            d_3 = d_h * tanh_c * fourth * (1 - fourth)
            tl.store(delta + 3 * H, d_3, mask=some)
            d_before = _adjoint_product(d_2, u_2, H, STRIDE, WIDTH, OPERAND)
            d_before += _adjoint_product(d_3, u_3, H, STRIDE, WIDTH, OPERAND)
            by_c = tl.where(active[:, None], d_c * second, by_c)
        else:
            d_h += d_logit[:, None] * gate_weight
            d_1 = d_h * (h_before - third) * second * (1 - second)
            d_2 = d_h * (1 - second) * (1 - third * third)
            if AFTER:
                fourth = tl.load(block + 3 * H, mask=some, other=0.0)
                d_0 = d_2 * fourth * first * (1 - first)
                d_before = d_h * second + _adjoint_product(d_2 * first, u_2, H, STRIDE, WIDTH, OPERAND)
            else:
                d_reset = _adjoint_product(d_2, u_2, H, STRIDE, WIDTH, OPERAND)
                d_0 = d_reset * h_before * first * (1 - first)
                d_before = d_h * second + d_reset * first
        d_before += _adjoint_product(d_0, u_0, H, STRIDE, WIDTH, OPERAND)
        d_before += _adjoint_product(d_1, u_1, H, STRIDE, WIDTH, OPERAND)
        tl.store(delta, d_0, mask=some)
        tl.store(delta + H, d_1, mask=some)
        tl.store(delta + 2 * H, d_2, mask=some)
        by_wait = tl.zeros_like(by_a)
        if not GIVEN:
            term = terms + update * 3
            by_wait = tl.sum(by_gate, 1) + a_start * tl.load(term, mask=active, other=0.0)
            by_wait += p_start * tl.load(term + 1, mask=active, other=0.0) + tl.load(term + 2, mask=active, other=0.0)
            by_wait *= tl.load(clamp + update, mask=active, other=0.0)
        by_h = tl.where(active[:, None], d_before, by_h)
        by_a = tl.where(active, by_wait, by_a)
        by_p = tl.where(active, by_wait, by_p)
        held_first = tl.where(active, step > 0, held_first)
        segment = tl.where(active, previous, segment)
    a_start, p_start = by_a, by_p
    if WAITED:
        a_start = _before_wait(waiting_a, segment, exists, by_h, by_c, by_a, by_p, unit, LSTM, H)
        p_start = _before_wait(waiting_p, segment, exists, by_h, by_c, by_a, by_p, unit, LSTM, H)
    if OUTPUTS:
        held = held_first[:, None] & inside[None, :]
        by_h += tl.load(reached + (row * H)[:, None] + unit[None, :], mask=held, other=0.0)
    tl.debug_barrier()  # as in the forward
    tl.store(vector, by_h, mask=own)
    if LSTM:
        tl.store(vector + H, by_c, mask=own)
    tl.store(rest, a_start, mask=exists)
    tl.store(rest + 1, p_start, mask=exists)


@triton.jit
def segment_sums_kernel(
    grad,  # (T, B, H) of any strides
    step_stride,
    row_stride,
    unit_stride,
    number,  # (T, B) int64: how many updates the row has had
    total,  # (T, B, H): at each step, the sum of grad over it and what follows of its segment
    num_steps,
    batch_size,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A program sums one row from its end, STEPS steps at a time."""
    row = tl.program_id(0).to(tl.int64)
    unit = tl.arange(0, WIDTH)
    behind = tl.zeros((WIDTH,), tl.float32)
    number_behind = tl.full((), -1, tl.int64)
    num_blocks = tl.cdiv(num_steps, STEPS)
    for back in range(num_blocks):
        place = tl.arange(0, STEPS)
        step = ((num_blocks - 1 - back) * STEPS + place).to(tl.int64)
        some = (step < num_steps)[:, None] & (unit < H)[None, :]
        source = grad + (step * step_stride + row * row_stride)[:, None] + unit[None, :] * unit_stride
        values = tl.load(source, mask=some, other=0.0)
        numbers = tl.load(number + step * batch_size + row, mask=step < num_steps, other=-2)
        together = (numbers[:, None] == numbers[None, :]) & (place[:, None] <= place[None, :])
        sums = tl.dot(together.to(tl.float32), values, input_precision="ieee")
        sums += tl.where((numbers == number_behind)[:, None], behind[None, :], 0.0)
        tl.store(total + ((step * batch_size + row) * H)[:, None] + unit[None, :], sums, mask=some)
        behind = tl.sum(tl.where((place == 0)[:, None], sums, 0.0), 0)
        number_behind = tl.sum(tl.where(place == 0, numbers, 0), 0)
