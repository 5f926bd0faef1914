"""A model that accelerate has spread with `device_map` is asked like any other."""

import pytest
from labeled_words import label
from spread import partly_on_disk, spread
from zoo import base_model


@pytest.mark.parametrize("places", ["auto", partly_on_disk()], ids=["auto", "disk"])
def test_the_answers_are_the_same(tmp_path, places):
    usual, other = label(samples=5), label(spread(base_model("llama"), tmp_path, places), samples=5)
    assert [asked.to_line() for asked in other.answers] == [asked.to_line() for asked in usual.answers]
    assert (other.known, other.unknown, other.dropped) == (usual.known, usual.unknown, usual.dropped)
    assert usual.answers
