"""The Triton kernels that models/kernels/triton_ops.py launches.

A program owns ROWS rows and goes from update to update, every row at a step of its own, so it runs as often as the
busiest of its rows updates. The recurrent weights stay on the chip. Float addition is what decides the gates, one
rounding after another as in stepping; nothing here may reorder it.

Letters: B batch, T steps, H hidden, G gate blocks, A blocks that are saved, K state vectors (LSTM 2: h, c; GRU 1: h), E
updates in all rows, S = B + E segments, W = K·H + 3. Constants of a compilation: CELL, its name; H; WIDTH, the power of
two that H is filled up to; OPERAND and PRECISION, what the matrix products are made in; GIVEN, whether gates are.
"""

import triton
import triton.language as tl

_LOOK = tl.constexpr(8)
"""Steps of waiting between two looks at whether any row of a tile still waits."""


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2 * _sigmoid(2 * x) - 1


@triton.jit
def _weights(weight_hh, gate: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, OPERAND: tl.constexpr):
    """Block `gate` of weight_hh (G·H, H), 0 beyond H: (WIDTH, WIDTH)."""
    out, unit = tl.arange(0, WIDTH)[:, None], tl.arange(0, WIDTH)[None, :]
    block = tl.load(weight_hh + (gate * H + out) * H + unit, mask=(out < H) & (unit < H), other=0.0)
    return block.to(OPERAND)


@triton.jit
def _dot(left, right, PRECISION: tl.constexpr):
    return tl.dot(left.to(right.dtype), right, input_precision=PRECISION)


@triton.jit
def _wait(p, a, step, end, row, following, batch_size, GIVEN: tl.constexpr):
    """The step of each row's next update, or its end, and a there; all (ROWS,).

    following (T + 1, B): the first given update from a step on. A p that is not a number is never due.
    """
    if GIVEN:
        due = tl.load(following + step.to(tl.int64) * batch_size + row, mask=step < end, other=0)
        waiting = (step < end) & (due >= end)
        step = tl.where((step < end) & (due < end), due, step)
    else:
        waiting = step < end
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
    weight_hh,
    bias_n,  # (H,), what U_n h has of its own in a GRU with reset after
    update_weight,
    update_bias,
    ends,  # (B,) int32: each row's number of valid steps
    following,  # (T + 1, B) int32 if GIVEN
    h_last,  # (B, H), and so on: what rows start with, and then where they end
    c_last,
    prob_last,
    accumulated_last,
    states,  # (B, T + 1, K, H), or h alone unless SAVE; the update of step t goes to place t + 1
    saved,  # (B, T, A, H)
    prob,  # (B, T + 1)
    gates,  # (B, T), zeros
    num_steps,
    batch_size,
    CELL: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    GIVEN: tl.constexpr,
    SAVE: tl.constexpr,
):
    LSTM: tl.constexpr = CELL == "lstm"
    AFTER: tl.constexpr = CELL == "gru_reset_after"
    STATE: tl.constexpr = 2 * H if LSTM and SAVE else H
    BLOCKS: tl.constexpr = 3 if CELL == "gru" else 4
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    unit = tl.arange(0, WIDTH)
    exists, inside = row < batch_size, unit < H
    row_place = row.to(tl.int64)
    vector = row_place[:, None] * H + unit[None, :]
    own = exists[:, None] & inside[None, :]
    u_0 = tl.trans(_weights(weight_hh, 0, H, WIDTH, OPERAND))
    u_1 = tl.trans(_weights(weight_hh, 1, H, WIDTH, OPERAND))
    u_2 = tl.trans(_weights(weight_hh, 2, H, WIDTH, OPERAND))
    if LSTM:
        u_3 = tl.trans(_weights(weight_hh, 3, H, WIDTH, OPERAND))
        c = tl.load(c_last + vector, mask=own, other=0.0)
    if AFTER:
        own_bias = tl.load(bias_n + unit, mask=inside, other=0.0)[None, :]
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
        x = projection + (row_place * row_stride + step.to(tl.int64) * step_stride)[:, None] + unit[None, :]
        x_0 = tl.load(x, mask=some, other=0.0)
        x_1 = tl.load(x + H, mask=some, other=0.0)
        x_2 = tl.load(x + 2 * H, mask=some, other=0.0)
        if LSTM:
            x_3 = tl.load(x + 3 * H, mask=some, other=0.0)
            first = _sigmoid(x_0 + _dot(h, u_0, PRECISION))
            second = _sigmoid(x_1 + _dot(h, u_1, PRECISION))
            third = _tanh(x_2 + _dot(h, u_2, PRECISION))
            fourth = _sigmoid(x_3 + _dot(h, u_3, PRECISION))
            c_new = second * c + first * third
            h_new = fourth * _tanh(c_new)
            top = c_new
            c = tl.where(active[:, None], c_new, c)
        else:
            first = _sigmoid(x_0 + _dot(h, u_0, PRECISION))
            second = _sigmoid(x_1 + _dot(h, u_1, PRECISION))
            if AFTER:
                fourth = _dot(h, u_2, PRECISION) + own_bias
                third = _tanh(x_2 + first * fourth)
            else:
                third = _tanh(x_2 + _dot(first * h, u_2, PRECISION))
            h_new = third + second * (h - third)
            top = h_new
        p_new = _sigmoid(tl.sum(top * gate_weight, 1) + gate_bias)
        place = row_place * num_steps + step
        place_after = place + row_place + 1
        state = states + place_after[:, None] * STATE + unit[None, :]
        tl.store(state, h_new, mask=some)
        tl.store(gates + place, 1.0, mask=active)
        if SAVE:
            if LSTM:
                tl.store(state + H, c_new, mask=some)
            tl.store(prob + place_after, p_new, mask=active)
            block = saved + place[:, None] * (BLOCKS * H) + unit[None, :]
            tl.store(block, first, mask=some)
            tl.store(block + H, second, mask=some)
            tl.store(block + 2 * H, third, mask=some)
            if BLOCKS == 4:
                tl.store(block + 3 * H, fourth, mask=some)
        h = tl.where(active[:, None], h_new, h)
        p = tl.where(active, p_new, p)
        a = tl.where(active, 0.0, a)
        step, a = _wait(p, a, step + active.to(tl.int32), end, row, following, batch_size, GIVEN)
    tl.store(h_last + vector, h, mask=own)
    if LSTM:
        tl.store(c_last + vector, c, mask=own)
    tl.store(prob_last + row, p, mask=exists)
    tl.store(accumulated_last + row, a, mask=exists)


@triton.jit
def _behind(
    waiting, segment, alive, by_h, by_c, by_a, by_p, unit, LSTM: tl.constexpr, H: tl.constexpr, STATE: tl.constexpr
):
    """The adjoint of a, or of p, at the start of a segment from those behind it: waiting (S, W), one of the two."""
    place = segment * (STATE + 3)
    some = alive[:, None] & (unit < H)[None, :]
    by_state = by_h * tl.load(waiting + place[:, None] + unit[None, :], mask=some, other=0.0)
    if LSTM:
        by_state += by_c * tl.load(waiting + (place[:, None] + H) + unit[None, :], mask=some, other=0.0)
    rest = waiting + place + STATE
    total = tl.sum(by_state, 1) + by_a * tl.load(rest, mask=alive, other=0.0)
    return total + by_p * tl.load(rest + 1, mask=alive, other=0.0) + tl.load(rest + 2, mask=alive, other=0.0)


@triton.jit
def backward_kernel(
    index,  # (S, 4) int64
    last,  # (B,) int64: each row's last segment
    states,  # (S, K, H)
    saved,  # (E, A, H)
    prob,  # (S,)
    weight_hh,
    update_weight,
    reached,  # (T, B, H) if OUTPUTS: the adjoint of h at each step from the outputs of its segment, there and later
    terms,  # (E, 3) unless GIVEN
    clamp,  # (E,) unless GIVEN
    waiting,  # (2, S, W) if WAITED: some step was skipped
    adjoints,  # (B, W): of states, a and p behind the last segment, and then at the first step
    pre,  # (E, G, H)
    logit,  # (E,)
    num_segments,
    batch_size,
    CELL: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    GIVEN: tl.constexpr,
    WAITED: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    LSTM: tl.constexpr = CELL == "lstm"
    AFTER: tl.constexpr = CELL == "gru_reset_after"
    STATE: tl.constexpr = 2 * H if LSTM else H
    GATES: tl.constexpr = 4 if LSTM else 3
    BLOCKS: tl.constexpr = 3 if CELL == "gru" else 4
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = tl.arange(0, WIDTH)
    exists, inside = row < batch_size, unit < H
    own = exists[:, None] & inside[None, :]
    u_0 = _weights(weight_hh, 0, H, WIDTH, OPERAND)
    u_1 = _weights(weight_hh, 1, H, WIDTH, OPERAND)
    u_2 = _weights(weight_hh, 2, H, WIDTH, OPERAND)
    gate_weight = tl.load(update_weight + unit, mask=inside, other=0.0)[None, :]
    start = adjoints + row * (STATE + 3)
    by_h = tl.load(start[:, None] + unit[None, :], mask=own, other=0.0)
    by_c = by_h
    if LSTM:
        u_3 = _weights(weight_hh, 3, H, WIDTH, OPERAND)
        by_c = tl.load(start[:, None] + H + unit[None, :], mask=own, other=0.0)
    by_a = tl.load(start + STATE, mask=exists, other=0.0)
    by_p = tl.load(start + STATE + 1, mask=exists, other=0.0)
    segment = tl.load(last + row, mask=exists, other=-1)
    first_step = tl.full((ROWS,), 1, tl.int64)
    while tl.max(segment, 0) >= batch_size:
        active = segment >= batch_size
        some = active[:, None] & inside[None, :]
        update = segment - batch_size
        step = tl.load(index + segment * 4 + 1, mask=active, other=0)
        previous = tl.load(index + segment * 4 + 2, mask=active, other=-1)
        h_place = states + (segment * STATE)[:, None] + unit[None, :]
        old_place = states + (previous * STATE)[:, None] + unit[None, :]
        h = tl.load(h_place, mask=some, other=0.0)
        h_old = tl.load(old_place, mask=some, other=0.0)
        block = saved + (update * (BLOCKS * H))[:, None] + unit[None, :]
        first = tl.load(block, mask=some, other=0.0)
        second = tl.load(block + H, mask=some, other=0.0)
        third = tl.load(block + 2 * H, mask=some, other=0.0)
        p = tl.load(prob + segment, mask=active, other=0.0)
        a_start, p_start = by_a, by_p
        if WAITED:
            a_start = _behind(waiting, segment, active, by_h, by_c, by_a, by_p, unit, LSTM, H, STATE)
            other = waiting + num_segments * (STATE + 3)
            p_start = _behind(other, segment, active, by_h, by_c, by_a, by_p, unit, LSTM, H, STATE)
        d_h = by_h
        if OUTPUTS:
            output = reached + ((step * batch_size + row) * H)[:, None] + unit[None, :]
            d_h += tl.load(output, mask=some, other=0.0)
        by_gate = d_h * (h - h_old)
        d_logit = p_start * p * (1 - p)
        tl.store(logit + update, d_logit, mask=active)
        delta = pre + (update * (GATES * H))[:, None] + unit[None, :]
        if LSTM:
            fourth = tl.load(block + 3 * H, mask=some, other=0.0)
            c = tl.load(h_place + H, mask=some, other=0.0)
            c_old = tl.load(old_place + H, mask=some, other=0.0)
            by_gate += by_c * (c - c_old)
            tanh_c = _tanh(c)
            d_c = by_c + d_logit[:, None] * gate_weight + d_h * fourth * (1 - tanh_c * tanh_c)
            d_0 = d_c * third * first * (1 - first)
            d_1 = d_c * c_old * second * (1 - second)
            d_2 = d_c * first * (1 - third * third)
            d_3 = d_h * tanh_c * fourth * (1 - fourth)
            tl.store(delta + 3 * H, d_3, mask=some)
            d_old = _dot(d_0, u_0, PRECISION) + _dot(d_1, u_1, PRECISION)
            d_old += _dot(d_2, u_2, PRECISION) + _dot(d_3, u_3, PRECISION)
            by_c = tl.where(active[:, None], d_c * second, by_c)
        else:
            d_h += d_logit[:, None] * gate_weight
            d_1 = d_h * (h_old - third) * second * (1 - second)
            d_2 = d_h * (1 - second) * (1 - third * third)
            if AFTER:
                fourth = tl.load(block + 3 * H, mask=some, other=0.0)
                d_0 = d_2 * fourth * first * (1 - first)
                d_old = d_h * second + _dot(d_2 * first, u_2, PRECISION)
            else:
                d_reset = _dot(d_2, u_2, PRECISION)
                d_0 = d_reset * h_old * first * (1 - first)
                d_old = d_h * second + d_reset * first
            d_old += _dot(d_0, u_0, PRECISION) + _dot(d_1, u_1, PRECISION)
        tl.store(delta, d_0, mask=some)
        tl.store(delta + H, d_1, mask=some)
        tl.store(delta + 2 * H, d_2, mask=some)
        by_wait = tl.zeros_like(by_a)
        if not GIVEN:
            term = terms + update * 3
            by_wait = tl.sum(by_gate, 1) + a_start * tl.load(term, mask=active, other=0.0)
            by_wait += p_start * tl.load(term + 1, mask=active, other=0.0) + tl.load(term + 2, mask=active, other=0.0)
            by_wait *= tl.load(clamp + update, mask=active, other=0.0)
        by_h = tl.where(active[:, None], d_old, by_h)
        by_a = tl.where(active, by_wait, by_a)
        by_p = tl.where(active, by_wait, by_p)
        first_step = tl.where(active, step, first_step)
        segment = tl.where(active, previous, segment)
    a_start, p_start = by_a, by_p
    if WAITED:
        a_start = _behind(waiting, segment, exists, by_h, by_c, by_a, by_p, unit, LSTM, H, STATE)
        other = waiting + num_segments * (STATE + 3)
        p_start = _behind(other, segment, exists, by_h, by_c, by_a, by_p, unit, LSTM, H, STATE)
    if OUTPUTS:
        held = own & (first_step > 0)[:, None]
        by_h += tl.load(reached + (row * H)[:, None] + unit[None, :], mask=held, other=0.0)
    tl.store(start[:, None] + unit[None, :], by_h, mask=own)
    if LSTM:
        tl.store(start[:, None] + H + unit[None, :], by_c, mask=own)
    tl.store(start + STATE, a_start, mask=exists)
    tl.store(start + STATE + 1, p_start, mask=exists)


@triton.jit
def suffix_sums_kernel(
    grad,  # (T, B, H) of any strides
    step_stride,
    row_stride,
    unit_stride,
    number,  # (T, B) int32: how many updates the row had so far
    total,  # (T, B, H): at each step, the sum of grad over the rest of its segment
    num_steps,
    batch_size,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A program sums one row, STEPS steps at a time, from the end."""
    row = tl.program_id(0).to(tl.int64)
    unit = tl.arange(0, WIDTH)
    behind = tl.zeros((WIDTH,), tl.float32)
    number_behind = -1
    for back in range(tl.cdiv(num_steps, STEPS)):
        step = (tl.cdiv(num_steps, STEPS) - 1 - back) * STEPS + tl.arange(0, STEPS)
        exists = step < num_steps
        some = exists[:, None] & (unit < H)[None, :]
        place = step.to(tl.int64) * batch_size + row
        values = tl.load(
            grad + (step.to(tl.int64) * step_stride + row * row_stride)[:, None] + unit[None, :] * unit_stride,
            mask=some,
            other=0.0,
        )
        numbers = tl.load(number + place, mask=exists, other=-2)
        same = (numbers[:, None] == numbers[None, :]) & (step[:, None] <= step[None, :])
        sums = tl.dot(same.to(tl.float32), values, input_precision="ieee")
        sums += tl.where(numbers == number_behind, 1.0, 0.0)[:, None] * behind[None, :]
        tl.store(total + place[:, None] * H + unit[None, :], sums, mask=some)
        is_first = tl.arange(0, STEPS) == 0
        behind = tl.sum(tl.where(is_first[:, None], sums, 0.0), 0)
        number_behind = tl.sum(tl.where(is_first, numbers, 0), 0)
