"""Paragraphs of other text, and how high the statistic of the highest one in a document is.

With `paragraphs=True` the tokens that hold a blank line end paragraphs, and each is a candidate of the gate by itself.
With `z_c` of a paragraph as in `gate.windowed`, scaled for rows, `a` the share of false alarms, and M paragraphs of
out-of-fold scores of other text, joined to documents of k = 1, 2, 4, 8 and 16:

    q_p     the largest over k of the (1 - a) quantile of max_{c in document} z_c, and at least that of documents of 16
            by the tail of z_c, as for P (`cross_calibration.peak_quantile`); at least 1
    lambda  1 / q_p

The few rows of a fit hold too few documents of 16 paragraphs to count a share `a` of them: the highest paragraph alone
is in 16 of M. So the tail of z_c gives the quantile, as that of the excursions gives P's. The threshold is that of the
same fit without paragraphs, so a text without blank lines is judged as it would be there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_unlearn.guardrail.gate.windowed import WindowedConstants, mean_part


COUNTS = (1, 2, 4, 8, 16)
"""Paragraphs of a document."""
MOST_DOCUMENTS = 512


def paragraphs_of(rows: Sequence[Tensor], ends: Sequence[Tensor]) -> list[Tensor]:
    """Return the paragraphs of rows of scores `[tokens]`.

    `ends`, of the same shapes, is True where one ends, which a row's last token does as well.
    """
    found: list[Tensor] = []
    for row, last in zip(rows, ends, strict=True):
        cuts = (last.nonzero()[:, 0] + 1).tolist()
        found += [part for part in row.tensor_split([cut for cut in cuts if cut < len(row)]) if len(part)]
    return found


def documents(paragraphs: Sequence[Tensor], count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the scores and the ends of documents of `count` paragraphs, joined around the end.

    There is one from each paragraph on, or `MOST_DOCUMENTS` at equal distances if there are more.
    """
    number = len(paragraphs)
    starts = range(0, number, -(-number // MOST_DOCUMENTS))
    chosen = [[paragraphs[(start + i) % number] for i in range(count)] for start in starts]
    return [torch.cat(some) for some in chosen], [torch.cat([_end_of(part) for part in some]) for some in chosen]


def values_of(paragraphs: Sequence[Tensor], parameters: WindowedConstants) -> Tensor:
    """Return `z` of each paragraph, `[M]`."""
    hits = torch.stack([part.float().sum() for part in paragraphs])
    return mean_part(hits, torch.tensor([float(len(part)) for part in paragraphs]), parameters)


def highest(values: Tensor, count: int) -> Tensor:
    """Return `[M]`: the largest value of `count` paragraphs from each one on, around the end."""
    around = torch.cat([values] * (1 + -(-count // len(values))))
    return around.unfold(0, count, 1).amax(dim=1)[: len(values)]


def _end_of(paragraph: Tensor) -> Tensor:
    return torch.arange(len(paragraph)) == len(paragraph) - 1
