"""HSTU: causal layers over a history, and candidates that read it without being read.

``stack.py`` puts it together; ``layer.py`` is what happens to each token alone, ``attend.py`` what
happens between tokens, ``plan.py`` says who sees whom.
"""

from prerank.nn.hstu.stack import HSTUStack, HSTUState

__all__ = ["HSTUStack", "HSTUState"]
