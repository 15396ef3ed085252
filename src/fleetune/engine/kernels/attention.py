"""Attention inside each text of a pack, forward and backward, one text and head at a time in a core's own cache.

Nothing of size (tokens x tokens) outlives its text: the backward pass computes the weights again from the saved
logarithm of each row's sum (Dao et al., 2022, section 3.1).
"""

from __future__ import annotations

import numpy as np

from fleetune.engine.kernels.masks import lanes_kept
from fleetune.engine.kernels.numbers import (
    LANES,
    F,
    exponentials,
    inline,
    kernel,
    larger,
    largest_lane,
    load,
    load_lanes,
    select_between,
    spread,
    store,
    store_lanes,
    sum_of_lanes,
)
from fleetune.engine.kernels.tiles import ROWS, multiply, transpose

NO_WINDOW = 1 << 30
ROW_BITS = 20
"""A mask's row is `(text * heads + head) * 2**20 + query`."""


@inline
def _padded(count):
    return (count + LANES - 1) // LANES * LANES


@inline
def _to_tiles(count):
    return (count + ROWS - 1) // ROWS * ROWS


@inline
def _fill(target, source, start, count, head, width, factor):
    """Sets rows of `target` to one head's rows of `source` times `factor`; what pads them may be anything."""
    whole = width // LANES * LANES
    for i in range(count):
        row, values = target[i], source[start + i, head]
        for d in range(0, whole, LANES):
            store_lanes(row, d, load_lanes(values, d) * factor)
        for d in range(whole, width):
            row[d] = load(values, d) * factor


@inline
def _put(target, row, width, factor):
    """Sets one head's row of a result to `row` times `factor`."""
    whole = width // LANES * LANES
    for d in range(0, whole, LANES):
        store_lanes(target, d, load_lanes(row, d) * factor)
    for d in range(whole, width):
        store(target, d, row[d] * factor)


@inline
def _first_key(query, window):
    return max(0, query - window + 1)


@inline
def _end_of_keys(query, length, causal, window):
    return min(length, query + 1) if causal else min(length, query + window)


@inline
def _largest(row, low, high):
    """Returns the largest of a row's numbers from `low` to `high - 1`."""
    largest = spread(F(-np.inf))
    for j in range(low // LANES * LANES, _padded(high), LANES):
        largest = larger(select_between(low - j, high - j, load_lanes(row, j), F(-np.inf)), largest)
    return largest_lane(largest)


@inline
def _weigh(row, low, high, largest, mask):
    """Sets a row of scores to the weights of `low` to `high - 1`, not yet divided by their sum, which it returns."""
    stream, mask_row, dropped, keep = mask
    total = spread(F(0))
    for j in range(low // LANES * LANES, _padded(high), LANES):
        weight = select_between(low - j, high - j, exponentials(load_lanes(row, j) - largest), F(0))
        total = total + weight
        if dropped > 0:
            weight = weight * lanes_kept(stream, mask_row, j, dropped, keep)
        store_lanes(row, j, weight)
    return sum_of_lanes(total)


@inline
def _weigh_again(row, slope, whole, low, high, log_sum, mask):
    """Sets a row of scores to weights, and the row of their gradients, `slope`, to that of the scores.

    `whole` is memory for the weights before dropout.
    """
    stream, mask_row, dropped, keep = mask
    total = spread(F(0))
    for j in range(low // LANES * LANES, _padded(high), LANES):
        weight = select_between(low - j, high - j, exponentials(load_lanes(row, j) - log_sum), F(0))
        store_lanes(whole, j, weight)
        if dropped > 0:
            weight = weight * lanes_kept(stream, mask_row, j, dropped, keep)
        store_lanes(row, j, weight)
        steep = weight * select_between(low - j, high - j, load_lanes(slope, j), F(0))
        store_lanes(slope, j, steep)
        total = total + steep
    mean = sum_of_lanes(total)
    for j in range(low // LANES * LANES, _padded(high), LANES):
        store_lanes(slope, j, load_lanes(slope, j) - load_lanes(whole, j) * mean)


@inline
def _clear_unseen(row, low, high, length):
    """Sets to zero what the vectors from `low` to `high - 1` leave of a row."""
    row[: low // LANES * LANES] = F(0)
    row[_padded(high) : length] = F(0)


@kernel
def attend(query, key, value, query_starts, query_counts, starts, lengths, texts, scale, causal, window, keys, dropped,
           keep, out, log_sums):  # fmt: skip
    """Sets `out` and `log_sums`, from `query` `(queries, heads, width)` and `key`, `value` `(tokens, groups, width)`.

    Args:
        query: Rows `query_starts[t]` up to `query_counts[t]` more belong to text `t`: its first tokens in order, or, if
            causal, its last. A text with a prefix has more keys than queries.
        key: Rows `starts[t]` up to `lengths[t]` more belong to text `t`.
        value: As `key`.
        query_starts: First row of each text in `query`.
        query_counts: Rows of each text in `query`.
        starts: First row of each text in `key`.
        lengths: Rows of each text in `key`.
        texts: Number of each text in its batch; a mask depends on it.
        scale: Factor of the scores.
        causal: Whether a token sees only those before it.
        window: Reach of a token.
        keys: The dropout stream of each text.
        dropped: Words below this are dropped, by text; 0 drops nothing.
        keep: Factor of what is kept, by text.
        out: As `query`.
        log_sums: `(queries, heads)`.
    """
    heads, width = query.shape[1], query.shape[2]
    per_group, wide, longest = heads // key.shape[1], _padded(width), _padded(lengths.max())
    q, k, v = np.zeros((longest, wide), F), np.zeros((longest, wide), F), np.zeros((longest, wide), F)
    k_columns, result = np.empty((wide, longest), F), np.empty((longest, wide), F)
    weights, largest, totals = np.empty((longest, longest), F), np.empty(longest, F), np.empty(longest, F)
    for t in range(len(lengths)):
        length, count, start, first = lengths[t], query_counts[t], starts[t], query_starts[t]
        ahead = length - count if causal else 0
        for head in range(heads):
            if head % per_group == 0:
                _fill(k, key, start, length, head // per_group, width, F(1))
                transpose(k_columns.ctypes.data, longest, _padded(length), wide, k.ctypes.data, wide)
                _fill(v, value, start, length, head // per_group, width, F(1))
            _fill(q, query, first, count, head, width, scale)
            multiply(weights.ctypes.data, longest, _to_tiles(count), _to_tiles(length), q.ctypes.data, wide, 1,
                     k_columns.ctypes.data, longest, width)  # fmt: skip
            for i in range(count):
                low, high = _first_key(ahead + i, window), _end_of_keys(ahead + i, length, causal, window)
                largest[i] = _largest(weights[i], low, high)
            for i in range(count):
                low, high = _first_key(ahead + i, window), _end_of_keys(ahead + i, length, causal, window)
                mask = (keys[t], (texts[t] * heads + head) << ROW_BITS | i, dropped[t], keep[t])
                totals[i] = _weigh(weights[i], low, high, largest[i], mask)
                _clear_unseen(weights[i], low, high, length)
            multiply(result.ctypes.data, wide, _to_tiles(count), _to_tiles(width), weights.ctypes.data, longest, 1,
                     v.ctypes.data, wide, length)  # fmt: skip
            for i in range(count):
                log_sums[first + i, head] = largest[i] + np.log(totals[i])
                _put(out[first + i, head], result[i], width, F(1) / totals[i])


@kernel
def attend_backward(gradient, query, key, value, query_starts, query_counts, starts, lengths, texts, scale, causal,
                    window, keys, dropped, keep, log_sums, query_gradient, key_gradient,
                    value_gradient):  # fmt: skip
    """Sets the gradients of `query`, `key` and `value` from that of `attend`'s result; arguments as there."""
    heads, width = query.shape[1], query.shape[2]
    per_group, wide, longest = heads // key.shape[1], _padded(width), _padded(lengths.max())
    q, g = np.zeros((longest, wide), F), np.zeros((longest, wide), F)
    k, v = np.zeros((longest, wide), F), np.zeros((longest, wide), F)
    k_columns, v_columns = np.empty((wide, longest), F), np.empty((wide, longest), F)
    weights, slopes, whole = np.empty((longest, longest), F), np.empty((longest, longest), F), np.empty(longest, F)
    result, k_sum, v_sum = np.empty((longest, wide), F), np.empty((longest, wide), F), np.empty((longest, wide), F)
    for t in range(len(lengths)):
        length, count, start, first = lengths[t], query_counts[t], starts[t], query_starts[t]
        ahead = length - count if causal else 0
        for head in range(heads):
            group = head // per_group
            if head % per_group == 0:
                _fill(k, key, start, length, group, width, F(1))
                transpose(k_columns.ctypes.data, longest, _padded(length), wide, k.ctypes.data, wide)
                _fill(v, value, start, length, group, width, F(1))
                transpose(v_columns.ctypes.data, longest, _padded(length), wide, v.ctypes.data, wide)
            _fill(q, query, first, count, head, width, scale)
            _fill(g, gradient, first, count, head, width, F(1))
            multiply(weights.ctypes.data, longest, _to_tiles(count), _to_tiles(length), q.ctypes.data, wide, 1,
                     k_columns.ctypes.data, longest, width)  # fmt: skip
            multiply(slopes.ctypes.data, longest, _to_tiles(count), _to_tiles(length), g.ctypes.data, wide, 1,
                     v_columns.ctypes.data, longest, width)  # fmt: skip
            for i in range(count):
                low, high = _first_key(ahead + i, window), _end_of_keys(ahead + i, length, causal, window)
                mask = (keys[t], (texts[t] * heads + head) << ROW_BITS | i, dropped[t], keep[t])
                _weigh_again(weights[i], slopes[i], whole, low, high, log_sums[first + i, head], mask)
                _clear_unseen(weights[i], low, high, length)
                _clear_unseen(slopes[i], low, high, length)
            multiply(result.ctypes.data, wide, _to_tiles(count), _to_tiles(width), slopes.ctypes.data, longest, 1,
                     k.ctypes.data, wide, length)  # fmt: skip
            for i in range(count):
                _put(query_gradient[first + i, head], result[i], width, scale)
            k_part, v_part = (k_sum, v_sum) if head % per_group == 0 else (result, result)
            multiply(k_part.ctypes.data, wide, _to_tiles(length), _to_tiles(width), slopes.ctypes.data, 1, longest,
                     q.ctypes.data, wide, count)  # fmt: skip
            if head % per_group > 0:
                k_sum[:length] += result[:length]
            multiply(v_part.ctypes.data, wide, _to_tiles(length), _to_tiles(width), weights.ctypes.data, 1, longest,
                     g.ctypes.data, wide, count)  # fmt: skip
            if head % per_group > 0:
                v_sum[:length] += result[:length]
            if (head + 1) % per_group == 0:
                for j in range(length):
                    _put(key_gradient[start + j, group], k_sum[j], width, F(1))
                    _put(value_gradient[start + j, group], v_sum[j], width, F(1))
