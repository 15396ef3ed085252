"""Attention inside each text of a pack, forward and backward, one text and head at a time in a core's own cache.

Nothing of size (tokens x tokens) outlives its text: the backward pass computes the weights again from the saved
logarithm of each row's sum (Dao et al., 2022, section 3.1).
"""

from __future__ import annotations

import numpy as np

from fleetune.engine.kernels.masks import fill_words
from fleetune.engine.kernels.numbers import F, exponential, helper, inline, kernel, load, store
from fleetune.engine.kernels.tiles import multiply

NO_WINDOW = 1 << 30
ROW_BITS = 20
"""A mask's row is `(text * heads + head) * 2**20 + query`."""


@inline
def _padded(count):
    return (count + 7) // 8 * 8


@inline
def _fill(target, source, start, count, head, width, factor):
    """Sets rows of `target` to one head's rows of `source` times `factor`, and the rest of their padding to zero."""
    for i in range(_padded(count)):
        row = target[i]
        row[:] = F(0)
        if i < count:
            values = source[start + i, head]
            for d in range(width):
                row[d] = load(values, d) * factor


@inline
def _fill_transposed(target, source, start, count, head, width):
    for d in range(width):
        for i in range(_padded(count)):
            target[d, i] = F(0)
    for i in range(count):
        values = source[start + i, head]
        for d in range(width):
            target[d, i] = load(values, d)


@inline
def _first_key(query, causal, window):
    return max(0, query - window + 1)


@inline
def _end_of_keys(query, length, causal, window):
    return min(length, query + 1) if causal else min(length, query + window)


@helper
def _largest(row):
    largest = row[0]
    for j in range(row.size):
        largest = max(largest, row[j])
    return largest


@kernel
def attend(query, key, value, query_starts, query_counts, starts, lengths, texts, scale, causal, window, keys, dropped,
           keep, out, log_sums):  # fmt: skip
    """Sets `out` and `log_sums`, from `query` `(queries, heads, width)` and `key`, `value` `(tokens, groups, width)`.

    Args:
        query: Rows `query_starts[t]` up to `query_counts[t]` more belong to text `t`, its first tokens in order.
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
    q, v = np.empty((longest, wide), F), np.empty((longest, wide), F)
    k, result = np.empty((wide, longest), F), np.empty((longest, wide), F)
    weights, words = np.empty((longest, longest), F), np.empty(longest // 4, np.uint64)
    factors = np.empty(longest, F)
    for t in range(len(lengths)):
        length, count, start, first = lengths[t], query_counts[t], starts[t], query_starts[t]
        columns = _padded(length)
        for head in range(heads):
            if head % per_group == 0:
                _fill_transposed(k, key, start, length, head // per_group, width)
                _fill(v, value, start, length, head // per_group, width, F(1))
            _fill(q, query, first, count, head, width, scale)
            multiply(weights.ctypes.data, longest, _padded(count), columns, q.ctypes.data, wide, 1,
                     k.ctypes.data, longest, width)  # fmt: skip
            for i in range(count):
                row = weights[i]
                low, high = _first_key(i, causal, window), _end_of_keys(i, length, causal, window)
                seen = row[low:high]
                largest = _largest(seen)
                total = F(0)
                for j in range(seen.size):
                    weight = exponential(seen[j] - largest)
                    seen[j] = weight
                    total += weight
                log_sums[first + i, head] = largest + np.log(total)
                factor = F(1) / total
                if dropped[t] > 0:
                    fill_words(words, keys[t], (texts[t] * heads + head) << ROW_BITS | i, length)
                    factor *= keep[t]
                    fates, threshold = words.view(np.uint16)[low:high], np.uint16(dropped[t])
                    for j in range(seen.size):
                        factors[j] = factor if fates[j] >= threshold else F(0)
                    for j in range(seen.size):
                        seen[j] *= factors[j]
                else:
                    for j in range(seen.size):
                        seen[j] *= factor
                row[:low] = F(0)
                row[high:columns] = F(0)
            multiply(result.ctypes.data, wide, _padded(count), wide, weights.ctypes.data, longest, 1,
                     v.ctypes.data, wide, length)  # fmt: skip
            for i in range(count):
                target, row = out[first + i, head], result[i]
                for d in range(width):
                    store(target, d, row[d])


@kernel
def attend_backward(  # noqa: C901
                    gradient, query, key, value, query_starts, query_counts, starts, lengths, texts, scale, causal,
                    window, keys, dropped, keep, log_sums, query_gradient, key_gradient,
                    value_gradient):  # fmt: skip
    """Sets the gradients of `query`, `key` and `value` from that of `attend`'s result; arguments as there."""
    heads, width = query.shape[1], query.shape[2]
    per_group, wide, longest = heads // key.shape[1], _padded(width), _padded(lengths.max())
    q, g = np.empty((longest, wide), F), np.empty((longest, wide), F)
    k, k_columns, v_columns = np.empty((longest, wide), F), np.empty((wide, longest), F), np.empty((wide, longest), F)
    weights, slopes = np.empty((longest, longest), F), np.empty((longest, longest), F)
    words, kept = np.empty(longest // 4, np.uint64), np.empty(longest, F)
    result, k_sum, v_sum = np.empty((longest, wide), F), np.empty((longest, wide), F), np.empty((longest, wide), F)
    for t in range(len(lengths)):
        length, count, start, first = lengths[t], query_counts[t], starts[t], query_starts[t]
        columns = _padded(length)
        for head in range(heads):
            group = head // per_group
            if head % per_group == 0:
                _fill(k, key, start, length, group, width, F(1))
                _fill_transposed(k_columns, key, start, length, group, width)
                _fill_transposed(v_columns, value, start, length, group, width)
                k_sum[:columns] = F(0)
                v_sum[:columns] = F(0)
            _fill(q, query, first, count, head, width, scale)
            _fill(g, gradient, first, count, head, width, F(1))
            multiply(weights.ctypes.data, longest, _padded(count), columns, q.ctypes.data, wide, 1,
                     k_columns.ctypes.data, longest, width)  # fmt: skip
            multiply(slopes.ctypes.data, longest, _padded(count), columns, g.ctypes.data, wide, 1,
                     v_columns.ctypes.data, longest, width)  # fmt: skip
            for i in range(count):
                row, slope, log_sum = weights[i], slopes[i], log_sums[first + i, head]
                low, high = _first_key(i, causal, window), _end_of_keys(i, length, causal, window)
                # Views that start at 0: with another start each index would be tested for a negative one.
                seen, steep, mean = row[low:high], slope[low:high], F(0)
                for j in range(seen.size):
                    seen[j] = exponential(seen[j] - log_sum)
                if dropped[t] > 0:
                    fill_words(words, keys[t], (texts[t] * heads + head) << ROW_BITS | i, length)
                    fates, threshold, factor = words.view(np.uint16)[low:high], np.uint16(dropped[t]), keep[t]
                    for j in range(seen.size):
                        kept[j] = factor if fates[j] >= threshold else F(0)
                    for j in range(seen.size):
                        kept[j] *= seen[j]
                        mean += kept[j] * steep[j]
                    for j in range(seen.size):
                        steep[j] = kept[j] * steep[j] - seen[j] * mean
                        seen[j] = kept[j]
                else:
                    for j in range(seen.size):
                        mean += seen[j] * steep[j]
                    for j in range(seen.size):
                        steep[j] = seen[j] * (steep[j] - mean)
                row[:low] = F(0)
                row[high:columns] = F(0)
                slope[:low] = F(0)
                slope[high:columns] = F(0)
            multiply(result.ctypes.data, wide, _padded(count), wide, slopes.ctypes.data, longest, 1,
                     k.ctypes.data, wide, length)  # fmt: skip
            for i in range(count):
                target, values = query_gradient[first + i, head], result[i]
                for d in range(width):
                    store(target, d, values[d] * scale)
            multiply(result.ctypes.data, wide, columns, wide, slopes.ctypes.data, 1, longest,
                     q.ctypes.data, wide, count)  # fmt: skip
            for j in range(length):
                for d in range(width):
                    k_sum[j, d] += result[j, d]
            multiply(result.ctypes.data, wide, columns, wide, weights.ctypes.data, 1, longest,
                     g.ctypes.data, wide, count)  # fmt: skip
            for j in range(length):
                for d in range(width):
                    v_sum[j, d] += result[j, d]
            if (head + 1) % per_group == 0:
                for j in range(length):
                    k_target, v_target = key_gradient[start + j, group], value_gradient[start + j, group]
                    k_row, v_row = k_sum[j], v_sum[j]
                    for d in range(width):
                        store(k_target, d, k_row[d])
                        store(v_target, d, v_row[d])
