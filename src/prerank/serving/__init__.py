"""Serving: bundles of trained cascades, and the engine that answers from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prerank.plugins import lazy_names

if TYPE_CHECKING:
    from prerank.serving.engine import Engine as Engine
    from prerank.serving.messages import Candidates as Candidates
    from prerank.serving.messages import RankAnswer as RankAnswer
    from prerank.serving.messages import RankRequest as RankRequest
    from prerank.serving.messages import User as User
    from prerank.serving.replay import requests_of as requests_of

_TARGETS = {
    "Candidates": "prerank.serving.messages:Candidates",
    "Engine": "prerank.serving.engine:Engine",
    "RankAnswer": "prerank.serving.messages:RankAnswer",
    "RankRequest": "prerank.serving.messages:RankRequest",
    "User": "prerank.serving.messages:User",
    "requests_of": "prerank.serving.replay:requests_of",
}

__all__ = ["Candidates", "Engine", "RankAnswer", "RankRequest", "User", "requests_of"]

# torch is imported when the engine is first used.
__getattr__, __dir__ = lazy_names(__name__, _TARGETS)
