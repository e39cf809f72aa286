"""The graph of nearest neighbours among features, and labels that spread over it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**24
"""Similarities that are held at once."""


def neighbour_graph(features: Tensor, neighbours: int, temperature: float) -> Any:
    """S = D^(−1/2) A D^(−1/2) of the graph in which every example is tied to its nearest, by the cosine.

    Args:
        features: (n, D), float32, on the CPU.
        neighbours: Edges that each example draws, fewer than n; an edge holds in both directions.
        temperature: τ of A_ij = exp((cos(x_i, x_j) − 1) / τ).

    Returns:
        scipy's CSR matrix (n, n), float64. Costs n² D multiplications, and memory for ``BLOCK`` similarities.
    """
    import scipy.sparse as sparse  # slow to import

    unit = torch.nn.functional.normalize(features.float(), dim=1)
    n = len(unit)
    k, size = min(neighbours, n - 1), max(1, BLOCK // n)
    values, columns = [], []
    for start in range(0, n, size):
        similarity = unit[start : start + size] @ unit.T
        here = torch.arange(len(similarity))
        similarity[here, start + here] = -2.0  # no example is its own neighbour
        value, column = similarity.topk(k, 1)
        values.append(value)
        columns.append(column)
    weight = ((torch.cat(values).double() - 1) / temperature).exp().numpy().ravel()
    place = (np.repeat(np.arange(n), k), torch.cat(columns).numpy().ravel())
    edges = sparse.csr_matrix((weight, place), shape=(n, n))
    edges = edges.maximum(edges.T)
    root = sparse.diags(1 / np.sqrt(np.maximum(np.asarray(edges.sum(1)).ravel(), 1e-300)))
    return (root @ edges @ root).tocsr()


def propagate(
    graph: Any, labeled: Tensor, labels: Tensor, num_classes: int, spread: float, rounds: int = 30
) -> Tensor:
    """F ← α S F + (1 − α) Y, its rows made to sum to one.

    Args:
        graph: S, (n, n); see :func:`neighbour_graph`.
        labeled: (m,) int64, rows that have a label.
        labels: (m,) int64, their labels. The labels of a class share a mass of 1, so that none drowns another.
        num_classes: C.
        spread: α.
        rounds: How many steps a label walks; what walks further has lost α^rounds of its mass.

    Returns:
        (n, C) float32; uniform where no label came.
    """
    start = np.zeros((graph.shape[0], num_classes))
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    start[labeled.numpy(), labels.numpy()] = (1 / counts[labels].double()).numpy()
    mass = start
    for _ in range(rounds):
        mass = spread * (graph @ mass) + (1 - spread) * start
    total = mass.sum(1, keepdims=True)
    shares = np.where(total > 1e-300, mass / np.maximum(total, 1e-300), 1 / num_classes)
    return torch.from_numpy(shares).float()
