"""Each publisher has a namespace of its own for its keys, and no text reaches out of it."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from qgstream.events.namespaces import APPLICATION, namespace, scoped

Sent = tuple[tuple[str, ...], str]

TEXT = st.text(max_size=20)
PUBLISHERS = st.lists(TEXT, min_size=1, max_size=4).map(tuple)
SENT = st.tuples(PUBLISHERS, TEXT)


@given(SENT, SENT)
@example((("publish_key", "a"), "bc"), (("publish_key", "ab"), "c"))
@example((("publish_key", 'a", "b'), "c"), (("publish_key", "a", "b"), "c"))
@example((("token", "", "a"), "c"), (("token", "a"), "c"))
@example((("a", "b"), "c"), (("a", "b"), "c"))
@example((("a",), "\ud800"), (("a",), "?"))
@example((("a",), "é"), (("a",), "e\u0301"))
def test_two_keys_are_one_only_if_text_and_publisher_are(one: Sent, other: Sent) -> None:
    (mine, key), (theirs, their_key) = one, other
    is_same = scoped(namespace(*mine), key) == scoped(namespace(*theirs), their_key)
    assert is_same is (one == other)


@given(SENT)
@example((("x" * 100_000,), "日" * 256))
def test_a_scoped_key_fits_every_engine(sent: Sent) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", scoped(namespace(*sent[0]), sent[1]))


def test_they_are_what_they_were() -> None:
    """Processes of two versions, and what lies in engines and on disk, agree on them for five minutes."""
    assert scoped(namespace("publish_key", "orders"), "order-7") == "hBP59g8xUI1QUt8w6CgloU2HifxeIkHxFHoyqsNrC_0"
    assert (
        scoped(namespace("token", "https://issuer.example", "ann"), "order-7")
        == "MLRl4hNy2PEVVPjNOaj7njovhCnuCf7ym6kyPpmPoy8"
    )
    assert scoped(APPLICATION, "order-7") == "YNj_EHVOhOVMWrDRChRSFOPWTctSWQjWc4RppV4EqNo"
