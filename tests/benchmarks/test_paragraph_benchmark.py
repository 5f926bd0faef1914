"""The documents of the benchmark of paragraphs, and texts behind filler, against their definitions."""

import torch

from benchmarks.gates.encoded_rows import Encoded
from benchmarks.gates.paragraph_gate import Documents, documents, joined
from benchmarks.gates.token_gates import Rowset


class TokenNumbers:
    """A score that numbers the tokens."""

    def of(self, active):
        return torch.arange(float(active.lengths.sum()))


def document(tokens):
    nothing = torch.zeros(0)
    return Rowset(
        Encoded(
            torch.tensor([tokens]), torch.zeros(tokens + 1, dtype=torch.long), nothing.short(), *[nothing] * 3
        )._asdict()
    )


def test_documents_are_cut_after_every_number_of_paragraphs():
    ends = torch.tensor([False, True, True, False, True, False, False])
    docs = Documents([document(7)], [ends])
    rows, last = docs.parts(TokenNumbers(), 1)
    assert [row.tolist() for row in rows] == [[0, 1], [2], [3, 4], [5, 6]]
    assert [end.tolist() for end in last] == [[0, 1], [1], [0, 1], [0, 0]]
    assert [row.tolist() for row in docs.parts(TokenNumbers(), 2)[0]] == [[0, 1, 2], [3, 4, 5, 6]]
    assert [row.tolist() for row in docs.parts(TokenNumbers(), 3)[0]] == [[0, 1, 2, 3, 4]]


def test_a_document_has_sixteen_paragraphs():
    (text, *rest) = documents([[str(i) for i in range(35)]])
    assert text.split("\n\n") == [str(i) for i in range(16)]
    assert len(rest) == 1


def test_filler_ends_a_paragraph_before_the_text():
    row, ends = joined(torch.tensor([1.0, 2.0]), torch.tensor([3.0]))
    assert row.tolist() == [1, 2, 3]
    assert ends.tolist() == [False, True, False]
