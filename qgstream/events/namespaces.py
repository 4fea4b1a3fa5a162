"""Namespaces of idempotency keys: each publisher has its own, and cannot use the keys of another publisher. Pure.

The server scopes a publisher's key once, where the event comes in. Brokers, engines and files only have the scoped key.
So the same text from another publisher is another key.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode


def namespace(*publisher: str) -> bytes:
    """Return the namespace of a publisher.

    `publisher` is a kind of publisher, and then the texts that identify the publisher within that kind. The namespace
    is the same in every process and after every restart. It is a digest of JSON text, because two different lists have
    different JSON texts. The digest has a fixed size, so no key is longer than an engine accepts.
    """
    return hashlib.sha256(json.dumps(publisher).encode()).digest()


def scoped(namespace: bytes, key: str) -> str:
    """Return the scoped key: 43 characters of `A-Za-z0-9_-`, which every engine accepts unchanged.

    The scoped key is a digest, so no text of a publisher can become a key of another namespace. (All namespaces have
    the same length, so the border between namespace and key is clear.)
    """
    digest = hashlib.sha256(namespace + key.encode("utf-8", "surrogatepass")).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


# The application that embeds a hub and calls `hub.publish`. All processes of the application are one publisher.
APPLICATION = namespace("application")
