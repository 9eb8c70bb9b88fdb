"""Cross-entropy as a function of the log-odds of being wrong, with the focal factor.

Source: focal loss (Lin et al., ICCV 2017, arXiv 1708.02002): ``(1 - p)**gamma * -log(p)``, ``p``
the probability of what is true. With ``u`` the log-odds of being wrong, ``1 - p = sigmoid(u)``, for
a binary target and for the positive of a softmax alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["focal_loss", "focal_slope"]


def focal_loss(odds: Tensor, gamma: float = 0.0) -> Tensor:
    """Return ``sigmoid(u)**gamma * log(1 + exp(u))``, the same shape.

    Parameters
    ----------
    odds : Tensor
        Log-odds ``u`` of being wrong; -inf gives 0.
    gamma : float
        0 is plain cross-entropy.

    Examples
    --------
    >>> focal_loss(torch.tensor([0.0, float("-inf")]))
    tensor([0.6931, 0.0000])
    """
    # F.softplus is linear beyond a threshold, which costs half of float64's digits.
    loss = torch.logaddexp(odds, torch.zeros_like(odds))
    return loss * torch.exp(gamma * F.logsigmoid(odds)) if gamma else loss


def focal_slope(odds: Tensor, gamma: float = 0.0) -> Tensor:
    """Return the derivative of :func:`focal_loss`, the same shape.

    Examples
    --------
    >>> focal_slope(torch.tensor(0.0))
    tensor(0.5000)
    """
    wrong = torch.sigmoid(odds)
    if not gamma:
        return wrong
    bent = wrong + gamma * torch.sigmoid(-odds) * focal_loss(odds)
    return torch.exp(gamma * F.logsigmoid(odds)) * bent
