"""The exception tree: every error of a request has an HTTP status and a stable code.

The message says which value the server got and which value it expected. The facts are attributes, so that a caller
never parses the message.
"""

from __future__ import annotations


class QgstreamError(Exception):
    """The base of all errors that qgstream raises on purpose.

    Attributes:
        status: The HTTP status that fits: 4xx if the caller is at fault, 5xx if the server is.
        code: A stable word for programs.

    Example::

        import qgstream

        try:
            qgstream.open_broker("carrier-pigeon://loft")
        except qgstream.QgstreamError as error:
            print(error.status, error.code, error)
    """

    status = 500
    code = "server_error"


class BadRequest(QgstreamError):
    """The request is malformed. `field` names the invalid field, if there is one."""

    status = 400
    code = "bad_request"

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        if code is not None:
            self.code = code


class InvalidField(BadRequest):
    """A field or a parameter holds a value that it cannot have. It has the status 400 and the code `invalid_field`.

    Args:
        field: The name of the field.
        message: The value that the server got and the value that it expected.

    Attributes:
        field: The name of the field.

    Example::

        import qgstream

        hub = qgstream.Hub()
        await hub.start()
        try:
            await hub.publish("orders/*", 7)
        except qgstream.InvalidField as error:
            print(error.field, error)
        await hub.stop()
    """

    code = "invalid_field"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", field=field)


class TooLarge(QgstreamError):
    """A body or an event is over its limit. It has the status 413 and the code `too_large`.

    Args:
        what: The part that is too large.
        got_bytes: Its size in bytes.
        limit_bytes: The limit in bytes.

    Attributes:
        got_bytes: The size in bytes.
        limit_bytes: The limit in bytes.

    Example::

        import qgstream

        hub = qgstream.Hub(limits=qgstream.LimitSettings(max_event_bytes=1024))
        await hub.start()
        try:
            await hub.publish("orders", "x" * 2000)
        except qgstream.TooLarge as error:
            print(error.got_bytes, error.limit_bytes)
        await hub.stop()
    """

    status = 413
    code = "too_large"

    def __init__(self, what: str, got_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"{what}: got {got_bytes} bytes, expected at most {limit_bytes}")
        self.got_bytes = got_bytes
        self.limit_bytes = limit_bytes


class NotStorable(BadRequest):
    """The broker can never store this event, for a reason other than its size. The broker accepts other events."""

    code = "not_storable"


class UnsupportedMediaType(QgstreamError):
    """The body has an unsupported content type."""

    status = 415
    code = "unsupported_media_type"


class UnsupportedContentCoding(UnsupportedMediaType):
    """The body has an unsupported `Content-Encoding`. `accepted` is the value of `Accept-Encoding` in the response."""

    code = "unsupported_content_coding"

    def __init__(self, message: str, *, accepted: str) -> None:
        super().__init__(message)
        self.accepted = accepted


class Unauthorized(QgstreamError):
    """The request has no credentials, or has invalid credentials."""

    status = 401
    code = "unauthorized"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class UnknownKeyId(Unauthorized):
    """The key that signed a token is not in the set. `issued_at` (unix seconds) is the token's unverified `iat`."""

    code = "unknown_key_id"

    def __init__(self, message: str, *, issued_at: float | None) -> None:
        super().__init__(message)
        self.issued_at = issued_at


class Forbidden(QgstreamError):
    """The credentials are valid, but do not allow the request."""

    status = 403
    code = "forbidden"


class Banned(Forbidden):
    """An operator has banned this client. `retry_after_seconds` is None for a permanent ban."""

    code = "banned"

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NoAdminKeys(Forbidden):
    """A request for the admin interface, although the configuration has no admin key."""

    code = "no_admin_keys"


class NoPublishKeys(Forbidden):
    """Nobody can publish over HTTP: the configuration has no publish key and does not accept tokens."""

    code = "no_publish_keys"


class Conflict(QgstreamError):
    """A value is valid, but conflicts with the state of this process. `field` names the value."""

    status = 409
    code = "conflict"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class NotFound(QgstreamError):
    """No such resource. `docs` is the path of the page that describes the paths, if there is one."""

    status = 404
    code = "not_found"

    def __init__(self, message: str, *, docs: str | None = None) -> None:
        super().__init__(message)
        self.docs = docs


class MethodNotAllowed(QgstreamError):
    """The resource exists but does not support this method."""

    status = 405
    code = "method_not_allowed"


class UnknownHost(QgstreamError):
    """The request names a host that this server does not accept."""

    status = 421
    code = "unknown_host"


class UpgradeRequired(QgstreamError):
    """The resource needs another protocol, and the request has no matching `Upgrade`."""

    status = 426
    code = "upgrade_required"


class TooManyRequests(QgstreamError):
    """A client exceeded its own limit. It may retry after `retry_after_seconds`."""

    status = 429
    code = "too_many_requests"

    def __init__(self, message: str, *, retry_after_seconds: float, code: str | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        if code is not None:
            self.code = code


class Unavailable(QgstreamError):
    """The server cannot accept the request now: it is full, draining, or its broker is down. The status is 503.

    Args:
        message: The reason.
        retry_after_seconds: The caller may retry after this many seconds.
        code: A word that is more specific than `unavailable`, such as `broker_down`.

    Attributes:
        retry_after_seconds: After how many seconds the caller may try again.

    Example::

        import asyncio
        import qgstream

        async def publish_later(hub: qgstream.Hub, order: int) -> None:
            while True:
                try:
                    await hub.publish("orders", order, idempotency_key=f"order-{order}")
                    return
                except qgstream.Unavailable as error:
                    await asyncio.sleep(error.retry_after_seconds)
    """

    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, retry_after_seconds: float, code: str | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        if code is not None:
            self.code = code


class MalformedRequest(BadRequest):
    """The request violates the grammar of HTTP/1.1, so its meaning is ambiguous."""

    code = "malformed_request"


class RequestTimeout(QgstreamError):
    """The client started a request but did not finish it in time."""

    status = 408
    code = "request_timeout"


class TargetTooLong(QgstreamError):
    """The request line is too long."""

    status = 414
    code = "target_too_long"


class ExpectationFailed(QgstreamError):
    """The header `Expect` has a value other than `100-continue`."""

    status = 417
    code = "expectation_failed"


class MisdirectedRequest(QgstreamError):
    """This connection does not serve the target of the request."""

    status = 421
    code = "misdirected_request"


class HeadersTooLarge(QgstreamError):
    """The header section has too many lines or bytes, or too many bytes of cookies."""

    status = 431
    code = "headers_too_large"


class NotImplementedHere(QgstreamError):
    """This server does not support the method or the transfer coding for any path."""

    status = 501
    code = "not_implemented"


class VersionNotSupported(QgstreamError):
    """The major version of HTTP in the request is not 1."""

    status = 505
    code = "http_version_not_supported"


class ConfigRejected(QgstreamError):
    """The server refused a reload requested over HTTP. The message lists every problem; nothing was changed."""

    status = 422
    code = "config_rejected"


class ConfigError(QgstreamError):
    """The configuration cannot be used. The message has one line for each problem.

    Args:
        problems: All problems that were found.

    Attributes:
        problems: All problems that were found.

    Example::

        import qgstream

        try:
            qgstream.open_broker("redis+tls://localhost")
        except qgstream.ConfigError as error:
            print(error.problems)
    """

    code = "invalid_configuration"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
