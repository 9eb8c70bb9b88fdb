"""Diagnosis of gradients: what each source of negatives does to a model.

Three definitions of "the gradient norm of a source" differ by factors of 2 to 30 on the same batch,
so every number says which one it is, and comes with its counts:

``contrast``
    What the source causes: its negatives and the pull on the positive that they cause. The
    contrasts of all sources add up to the gradient.
``negative``
    Its negatives alone, as if positives were constants.
``per_sample``
    Mean absolute gradient with respect to the score of one negative: free of how many there are.

Norms, dominance and angles are given for ``dense`` weights and for embedding ``table`` rows apart.

How to read angles (both points inferred from experiments, none is a statement of the authors): the
negatives of every source push the same output bias down, so cosines between negative sides are near
1 whatever happens and are left out here. And where training has nearly converged the total gradient
is about 0, so the contrasts of sources must cancel: a negative cosine late in training is partly
arithmetic; the one to quote as conflict comes from early steps.

Source: the measures of HAP (arXiv 2603.03770) are norms and mean logits per source; the paper's
exact instrument is not public. The cosine and its conflict rate follow PCGrad (arXiv 2001.06782),
as does the magnitude similarity ``2ab / (a^2 + b^2)``.
"""

from prerank.training.diagnosis.batch import diagnose
from prerank.training.diagnosis.summary import Summary, summarise

__all__ = ["Summary", "diagnose", "summarise"]
