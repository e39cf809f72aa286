"""The graph of nearest neighbours among features, and labels that spread over it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**24
"""Similarities that are held at once."""


def neighbour_graph(features: Tensor, neighbours: int, temperature: float) -> tuple[Any, Tensor]:
    """S = D^(−1/2) A D^(−1/2) of the graph in which every example is tied to its nearest, by the cosine.

    Args:
        features: (n, D), float32, on the CPU.
        neighbours: Edges that each example draws, fewer than n; an edge holds in both directions.
        temperature: τ of A_ij = exp((cos(x_i, x_j) − 1) / τ).

    Returns:
        scipy's CSR matrix (n, n), float64; and the nearest of each example, (n, k) int64. Costs n² D multiplications,
        and memory for ``BLOCK`` similarities.
    """
    import scipy.sparse as sparse  # slow to import

    unit = torch.nn.functional.normalize(features.float(), dim=1)
    n = len(unit)
    values, columns = nearest(unit, unit, min(neighbours, n - 1), itself=False)
    weight = ((values.double() - 1) / temperature).exp().numpy().ravel()
    place = (np.repeat(np.arange(n), values.shape[1]), columns.numpy().ravel())
    edges = sparse.csr_matrix((weight, place), shape=(n, n))
    edges = edges.maximum(edges.T)
    root = sparse.diags(1 / np.sqrt(np.maximum(np.asarray(edges.sum(1)).ravel(), 1e-300)))
    return (root @ edges @ root).tocsr(), columns


def nearest(unit: Tensor, among: Tensor, neighbours: int, itself: bool = True) -> tuple[Tensor, Tensor]:
    """The nearest of each row by the cosine, a block at a time.

    Args:
        unit: (n, D) float32, of length 1.
        among: (m, D), likewise.
        neighbours: k; no more than there are.
        itself: Whether row i of ``among`` may be the neighbour of row i.

    Returns:
        Cosines and rows, (n, k), the nearest first.
    """
    k, size = min(neighbours, len(among)), max(1, BLOCK // len(among))
    values, columns = [], []
    for start in range(0, len(unit), size):
        similarity = unit[start : start + size] @ among.T
        if not itself:
            here = torch.arange(len(similarity))
            similarity[here, start + here] = -2.0
        value, column = similarity.topk(k, 1)
        values.append(value)
        columns.append(column)
    return torch.cat(values), torch.cat(columns)


def sample_of(size: int, labeled: Tensor, largest: int) -> Tensor:
    """Rows to draw a graph on: all, or of very many an even sample that holds all labelled ones.

    Args:
        size: n.
        labeled: (m,) int64, rows that have a label.
        largest: Most rows; more only where more have a label.

    Returns:
        int64, rising.
    """
    if size <= largest:
        return torch.arange(size)
    others = torch.ones(size, dtype=torch.bool)
    others[labeled] = False
    rest = others.nonzero().flatten()
    wanted = max(0, largest - len(labeled))
    even = torch.linspace(0, len(rest) - 1, wanted).long() if wanted else rest[:0]
    return torch.cat((labeled, rest[even])).sort().values


def carried(features: Tensor, rows: Tensor, shares: Tensor, neighbours: int, temperature: float) -> Tensor:
    """What those that are not in a graph take from their nearest in it: the mean, weighed as its edges are.

    Args:
        features: (n, D) float32, of all examples.
        rows: (m,) int64, those in the graph.
        shares: (m, C), what these have.
        neighbours: k, how many are asked.
        temperature: τ.

    Returns:
        (n, C) float32; those in the graph keep theirs. Costs n m D multiplications, a block at a time.
    """
    found = torch.empty(len(features), shares.shape[1])
    unit = torch.nn.functional.normalize(features[rows].float(), dim=1)
    for some in torch.split(torch.arange(len(features)), max(1, BLOCK // len(rows))):
        own = torch.nn.functional.normalize(features[some].float(), dim=1)
        value, column = nearest(own, unit, neighbours)
        weight = ((value - value[:, :1]) / temperature).exp()
        found[some] = (weight[..., None] * shares[column]).sum(1) / weight.sum(1, keepdim=True)
    found[rows] = shares
    return found


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
    mass = spread_mass(graph, start, spread, rounds)
    total = mass.sum(1, keepdims=True)
    shares = np.where(total > 1e-300, mass / np.maximum(total, 1e-300), 1 / num_classes)
    return torch.from_numpy(shares).float()


def spread_mass(graph: Any, start: np.ndarray, spread: float, rounds: int = 30) -> np.ndarray:
    """F ← α S F + (1 − α) Y, from Y (n, C), ``start``; see :func:`propagate`."""
    mass = start
    for _ in range(rounds):
        mass = spread * (graph @ mass) + (1 - spread) * start
    return mass
