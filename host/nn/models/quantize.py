"""Quantizes weights to int8: by plain rounding, or by rounding that is calibrated with sample inputs."""

import numpy as np

# Added to the Hessian's diagonal, as a share of its mean, so that it can be inverted.
DAMPING = 0.01


def quantize_rows(weights):
    """Symmetric int8 with one scale per row: (int8 `[rows, columns]`, f32 scales `[rows, 1]`)."""
    scales = (np.maximum(np.abs(weights).max(axis=1, keepdims=True), 1e-12) / 127).astype(np.float32)
    return np.clip(np.rint(weights / scales), -127, 127).astype(np.int8), scales


def quantize_for_inputs(weights, gram):
    """Like `quantize_rows`, but each rounding error is compensated by the columns not yet rounded (GPTQ, Frantar et
    al. 2022, arXiv 2210.17323), so that `x @ weights.T` stays close for inputs `x` similar to those of `gram`.

    `weights` is `[out, in]`, `gram` the sum of `x xᵀ` over sample inputs, `[in, in]`. A few hidden units of MiniLM
    are hundreds of times larger than the others; plain rounding ignores that.
    """
    scales = (np.maximum(np.abs(weights).max(axis=1), 1e-12) / 127).astype(np.float32)
    gram = gram.astype(np.float64)
    gram = gram + np.eye(len(gram)) * DAMPING * np.diag(gram).mean()
    order = np.argsort(-np.diag(gram))
    gram = gram[np.ix_(order, order)]
    # Upper triangular U with U^T U = gram^-1: row i says how an error in column i spreads to the later ones.
    spread = np.linalg.cholesky(np.linalg.inv(gram)).T
    remaining = weights[:, order].astype(np.float64)
    rounded = np.zeros(weights.shape, dtype=np.int8)
    for i in range(len(order)):
        rounded[:, order[i]] = np.clip(np.rint(remaining[:, i] / scales), -127, 127)
        error = (remaining[:, i] - rounded[:, order[i]] * scales) / spread[i, i]
        remaining[:, i + 1 :] -= np.outer(error, spread[i, i + 1 :])
    return rounded, scales.reshape(-1, 1)
