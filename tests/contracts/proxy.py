"""A recording proxy in front of a real registry, with the records and faults of the strict one."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator

from tests.contracts.certificates import ca_path
from tests.contracts.http_records import Answer, Request
from tests.contracts.http_server import BrokenError, Incoming

_PIECE_BYTES = 1 << 16
_WHOLE_BYTES = 1 << 20
_OWN = frozenset(("connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade"))


class Proxy:
    """Forwards requests with their Host, so that the registry puts the proxy into its Locations."""

    def __init__(self, port: int, *, tls: bool) -> None:
        self._port = port
        self._tls = tls

    def answer(self, request: Request, body: Incoming) -> Answer:
        connection = self._connect()
        try:
            response = self._ask(connection, request, body)
        except http.client.HTTPException as error:
            connection.close()
            raise BrokenError("the registry closed") from error
        except BaseException:
            connection.close()
            raise
        headers = tuple((name, value) for name, value in response.getheaders() if name.lower() not in _OWN)
        stated = response.getheader("content-length")
        length = int(stated) if stated else None
        if request.method == "HEAD" or response.status == 204:
            response.close()
            connection.close()
            return Answer(response.status, headers, length=length)
        if length is not None and length <= _WHOLE_BYTES:  # even an unused body must not keep a connection open
            data = b"".join(_pieces(connection, response))
            return Answer(response.status, headers, data, length)
        return Answer(response.status, headers, _pieces(connection, response), length)

    def disturbed(self, request: Request | None) -> None:
        """A real registry notices by itself how its connections end."""

    def _ask(
        self, connection: http.client.HTTPConnection, request: Request, body: Incoming
    ) -> http.client.HTTPResponse:
        connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers:
            if name != "connection":
                connection.putheader(name, value)
        connection.endheaders()
        for piece in body.pieces():
            try:
                connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if body.chunked else piece)
            except OSError:
                break  # it has answered already
        else:
            if body.chunked:
                connection.send(b"0\r\n\r\n")
        return connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls:
            context = ssl.create_default_context(cafile=str(ca_path()))
            return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=60, context=context)
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)


def _pieces(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while piece := response.read(_PIECE_BYTES):
            yield piece
    except http.client.HTTPException as error:
        raise BrokenError("the registry closed") from error
    finally:
        response.close()
        connection.close()
