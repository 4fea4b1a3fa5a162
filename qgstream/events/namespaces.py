"""Namespaces of idempotency keys: each publisher has its own, and nobody can reach into that of another. Pure.

A key that a publisher sends is scoped once, where the event comes in. From there on brokers, engines and what lies on
disk know the scoped key alone: the same text by another publisher is another key there.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode


def namespace(*publisher: str) -> bytes:
    """The namespace of a publisher, who is named by a kind and whatever tells it from all others of that kind.

    The same on every process and after every restart. As JSON, in which no two lists of texts are alike, and of a
    fixed size, so that no key can be longer than an engine takes.
    """
    return hashlib.sha256(json.dumps(publisher).encode()).digest()


def scoped(namespace: bytes, key: str) -> str:
    """The key within a namespace: 43 characters of `A-Za-z0-9_-`, which every engine takes as they are.

    A digest: whatever text a publisher chooses for a key, it does not become a key of another namespace. (All
    namespaces are of one length, so where one ends and the key begins is certain.)
    """
    digest = hashlib.sha256(namespace + key.encode("utf-8", "surrogatepass")).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


# The program around a hub, which publishes with `hub.publish`: in however many processes it runs, it is one publisher.
APPLICATION = namespace("application")
