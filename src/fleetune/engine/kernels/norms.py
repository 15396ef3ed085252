"""Layer norm of a sum, with dropout on one of its terms, in one pass over memory."""

from __future__ import annotations

import numpy as np

from fleetune.engine.kernels.masks import fill_words
from fleetune.engine.kernels.numbers import F, kernel, load, store


@kernel
def normalise(x, residual, rows, key, dropped, keep, gain, bias, epsilon, out, normal,
              inverse_deviation):  # fmt: skip
    """Sets `out` to the layer norm of dropout(x) + residual `(tokens, width)` (Ba et al., 2016, equation 4).

    Args:
        x: What dropout acts on.
        residual: Is added to it.
        rows: `(tokens,)` row of each token in the mask.
        key: The dropout stream.
        dropped: Words below this are dropped; 0 drops nothing.
        keep: Factor of what is kept.
        gain: `(width,)`.
        bias: `(width,)`.
        epsilon: Is added to the variance.
        out: As `x`.
        normal: As `x`: the result before gain and bias, for the backward pass.
        inverse_deviation: `(tokens,)`.
    """
    count, width = x.shape
    buffer, words, threshold = np.empty(width, F), np.empty((width + 3) // 4, np.uint64), np.uint16(dropped)
    fates = words.view(np.uint16)
    for t in range(count):
        values, others = x[t], residual[t]
        total = F(0)
        if dropped > 0:
            fill_words(words, key, rows[t], width)
            for j in range(width):
                buffer[j] = keep if fates[j] >= threshold else F(0)
            for j in range(width):
                value = load(values, j) * buffer[j] + load(others, j)
                buffer[j] = value
                total += value
        else:
            for j in range(width):
                value = load(values, j) + load(others, j)
                buffer[j] = value
                total += value
        mean, squares = total / F(width), F(0)
        for j in range(width):
            squares += (buffer[j] - mean) * (buffer[j] - mean)
        inverse = F(1) / np.sqrt(squares / F(width) + epsilon)
        inverse_deviation[t] = inverse
        target, kept = out[t], normal[t]
        for j in range(width):
            value = (buffer[j] - mean) * inverse
            store(kept, j, value)
            store(target, j, value * load(gain, j) + load(bias, j))


@kernel
def normalise_backward(gradient, normal, inverse_deviation, rows, key, dropped, keep, gain, x_gradient,
                       residual_gradient):  # fmt: skip
    """Sets the gradients of `x` and `residual` from that of `normalise`'s result; arguments as there.

    Without dropout the two are the same, and only `residual_gradient` is set.
    """
    count, width = gradient.shape
    buffer, words, threshold = np.empty(width, F), np.empty((width + 3) // 4, np.uint64), np.uint16(dropped)
    fates = words.view(np.uint16)
    for t in range(count):
        incoming, values, target = gradient[t], normal[t], residual_gradient[t]
        mean, along = F(0), F(0)
        for j in range(width):
            value = load(incoming, j) * load(gain, j)
            buffer[j] = value
            mean += value
            along += value * load(values, j)
        mean /= F(width)
        along /= F(width)
        for j in range(width):
            value = inverse_deviation[t] * (buffer[j] - mean - along * load(values, j))
            buffer[j] = value
            store(target, j, value)
        if dropped > 0:
            fill_words(words, key, rows[t], width)
            dropped_target = x_gradient[t]
            for j in range(width):
                buffer[j] *= keep if fates[j] >= threshold else F(0)
            for j in range(width):
                store(dropped_target, j, buffer[j])
