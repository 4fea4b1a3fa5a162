"""The registry: the open streams, their number for each client, and the reserved places of streams that will open.

All counts of streams come from the registry, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qgstream.delivery.connection import Connection


class Registry:
    """The open connections by id."""

    def __init__(self) -> None:
        self._connections: dict[int, Connection] = {}
        self._of_client: dict[str, int] = {}
        self._last_id = 0
        self.places = 0  # reserved for admitted clients, while the broker looks up their ids

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._connections.values()))

    def next_id(self) -> int:
        """Return a number that no connection of this process has had before."""
        self._last_id += 1
        return self._last_id

    def get(self, id: int) -> Connection | None:
        """Return the open connection with this id."""
        return self._connections.get(id)

    def of_client(self, client_key: str) -> int:
        """Return how many streams of this client (`addresses.client_key`) are open or have a reserved place."""
        return self._of_client.get(client_key, 0)

    def add(self, connection: Connection) -> None:
        """Add an open stream."""
        self._connections[connection.id] = connection
        self._count(connection.client_key)

    def remove(self, connection: Connection) -> None:
        """Remove a stream that has ended. A second call has no effect."""
        if self._connections.pop(connection.id, None) is None:
            return
        self._discount(connection.client_key)

    @contextmanager
    def place(self, client_key: str) -> Iterator[None]:
        """Reserve a place for a stream of this client during the `with` block."""
        self.places += 1
        self._count(client_key)
        try:
            yield
        finally:
            self.places -= 1
            self._discount(client_key)

    def _count(self, client_key: str) -> None:
        self._of_client[client_key] = self.of_client(client_key) + 1

    def _discount(self, client_key: str) -> None:
        left = self._of_client[client_key] - 1
        if left:
            self._of_client[client_key] = left
        else:
            del self._of_client[client_key]
