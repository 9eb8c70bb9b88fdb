"""Retrieval channels fitted on events: similar items, factorisation, popularity.

* ``similar``: items that stand near each other in the users' sequences, cosine-normalised counts
  with shrinkage (Linden et al., IEEE Internet Computing 2003).
* ``factors``: right singular vectors of the user-item matrix (PureSVD: Cremonesi et al., RecSys
  2010) by randomised subspace iteration (Halko et al., SIAM Review 2011). A user is the mean
  vector of the history, so no user needs to have been seen.
* ``popular``: numbers of events.

Shapes: ``E`` events, ``N`` items, ``K`` neighbours, ``D`` factors, ``B`` requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file

from prerank import rng

__all__ = ["Channels", "nearest"]

Index = npt.NDArray[np.int64]
Items = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

_WINDOW = 10
_SHRINK = 5.0
_ITERATIONS = 3
_RECENT = 20


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """What retrieval knows after fitting.

    Parameters
    ----------
    neighbours : ndarray ``[N, K]`` int32
        Most similar items, best first; -1 where there are fewer.
    similarity : ndarray ``[N, K]`` float32
        Their similarities.
    factors : ndarray ``[N, D]`` float32
        Item vectors; zero for items without events.
    popularity : ndarray ``[N]`` float32
        Events of each item.

    Examples
    --------
    >>> user, item = np.array([0, 0, 1, 1]), np.array([2, 3, 2, 3], dtype=np.int32)
    >>> fitted = Channels.fit(user, item, num_items=5, neighbours=2, dim=2, seed=0)
    >>> fitted.neighbours[2].tolist(), fitted.popularity.tolist()
    ([3, -1], [0.0, 0.0, 2.0, 2.0, 0.0])
    """

    neighbours: Items
    similarity: Floats
    factors: Floats
    popularity: Floats

    @classmethod
    def fit(
        cls, user: Index, item: Items, *, num_items: int, neighbours: int, dim: int, seed: int
    ) -> Channels:
        """Fit on events ``[E]``, sorted by user, oldest first."""
        popularity = np.bincount(item, minlength=num_items).astype(np.float32)
        near, similarity = _similar(user, item, popularity, neighbours)
        factors = _factorise(user, item, popularity, dim, seed)
        return cls(near, similarity, factors, popularity)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({name: getattr(self, name) for name in self.__slots__}, path)

    @classmethod
    def load(cls, path: Path) -> Channels:
        """Read what ``save`` wrote."""
        return cls(**load_file(path))

    def similar(self, offsets: Index, item: Index) -> tuple[Index, Index, Floats]:
        """Return request, item and score of all neighbours of each history's last items.

        Parameters
        ----------
        offsets : ndarray ``[B + 1]`` int64
            History of each request.
        item : ndarray int64
            Items of the histories, oldest first.

        Returns
        -------
        tuple of ndarray
            Sorted by request, best first; every item once per request.
        """
        num_items = len(self.popularity)
        length = np.diff(offsets)
        request = np.repeat(np.arange(len(length)), length)
        recent = np.arange(len(item)) >= (offsets[1:] - _RECENT)[request]
        near = self.neighbours[item[recent]]
        code = request[recent][:, None] * num_items + near
        valid = near >= 0
        codes, inverse = np.unique(code[valid], return_inverse=True)
        score = np.bincount(inverse, weights=self.similarity[item[recent]][valid])
        order = np.lexsort((codes, -score, codes // num_items))
        codes = codes[order]
        return codes // num_items, codes % num_items, score[order].astype(np.float32)

    def queries(self, offsets: Index, item: Index) -> Floats:
        """Return the mean vector of each history, ``[B, D]``; zeros for an empty one."""
        length = np.diff(offsets)
        request = torch.from_numpy(np.repeat(np.arange(len(length)), length))
        total = torch.zeros(len(length), self.factors.shape[1])
        total.index_add_(0, request, torch.from_numpy(self.factors[item]))
        mean: Floats = (total / torch.from_numpy(length).clamp(min=1).unsqueeze(1)).numpy()
        return mean


def nearest(vectors: Floats, queries: Floats, k: int) -> tuple[Floats, Index]:
    """Return the ``k`` largest inner products per query, exactly; by faiss where installed.

    Parameters
    ----------
    vectors : ndarray ``[N, D]``
        What is searched.
    queries : ndarray ``[B, D]``
        What is searched for.
    k : int
        At most ``N``.

    Returns
    -------
    tuple of ndarray
        Scores and rows, ``[B, k]`` each, best first.

    Examples
    --------
    >>> nearest(np.eye(3, dtype=np.float32), np.array([[0.1, 0.9, 0.5]], np.float32), 2)[1]
    array([[1, 2]])
    """
    k = min(k, len(vectors))
    try:
        import faiss
    except ImportError:
        products = torch.from_numpy(queries) @ torch.from_numpy(vectors).T
        scores, rows = torch.topk(products, k, dim=1)
        return scores.numpy(), rows.numpy()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    found_scores, found_rows = index.search(np.ascontiguousarray(queries), k)
    return found_scores, found_rows


def _similar(
    user: Index, item: Items, popularity: Floats, num_neighbours: int
) -> tuple[Items, Floats]:
    num_items = len(popularity)
    codes = np.zeros(0, dtype=np.int64)
    counts = np.zeros(0, dtype=np.int64)
    for lag in range(1, _WINDOW + 1):
        same = user[lag:] == user[:-lag]
        left, right = item[:-lag][same].astype(np.int64), item[lag:][same].astype(np.int64)
        apart = left != right
        left, right = left[apart], right[apart]
        fresh = np.concatenate([left * num_items + right, right * num_items + left])
        found, number = np.unique(fresh, return_counts=True)
        # Merged lag by lag, so that memory holds distinct pairs and one lag's events.
        codes, inverse = np.unique(np.concatenate([codes, found]), return_inverse=True)
        counts = np.bincount(inverse, weights=np.concatenate([counts, number])).astype(np.int64)
    left, right = codes // num_items, codes % num_items
    norm = np.sqrt(popularity[left] * popularity[right])
    score = (counts / norm * (counts / (counts + _SHRINK))).astype(np.float32)
    order = np.lexsort((right, -score, left))
    left, right, score = left[order], right[order], score[order]
    starts = np.searchsorted(left, np.arange(num_items))
    place = np.arange(len(left)) - starts[left]
    kept = place < num_neighbours
    neighbours = np.full((num_items, num_neighbours), -1, dtype=np.int32)
    similarity = np.zeros((num_items, num_neighbours), dtype=np.float32)
    neighbours[left[kept], place[kept]] = right[kept]
    similarity[left[kept], place[kept]] = score[kept]
    return neighbours, similarity


def _factorise(user: Index, item: Items, popularity: Floats, dim: int, seed: int) -> Floats:
    num_items = len(popularity)
    users, row = np.unique(user, return_inverse=True)
    dim = min(dim, num_items, len(users))
    # A softened column norm keeps the first factors from being popularity alone.
    value = popularity[item].astype(np.float32) ** -0.25
    index = torch.from_numpy(np.stack([row, item.astype(np.int64)]))
    matrix = torch.sparse_coo_tensor(
        index, torch.from_numpy(value), (len(users), num_items), check_invariants=False
    ).coalesce()
    keys = np.arange(num_items)[:, None], np.arange(dim)
    basis = rng.normal(seed, rng.stream("funnel/factors"), *keys).astype(np.float32)
    found = torch.from_numpy(basis)
    transposed = matrix.t().coalesce()
    for _ in range(_ITERATIONS):
        found = torch.linalg.qr(torch.sparse.mm(transposed, torch.sparse.mm(matrix, found))).Q
    # Rotate to the singular vectors: the order of products does not change, their meaning does.
    _, _, right = torch.linalg.svd(torch.sparse.mm(matrix, found), full_matrices=False)
    factors: Floats = (found @ right.T).contiguous().numpy()
    factors[popularity == 0] = 0
    return factors
