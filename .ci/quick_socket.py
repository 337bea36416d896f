"""A kernel's messages reach the browser at once: for `jupyter lab` with .ci on the PYTHONPATH and
the option --ServerApp.kernel_websocket_connection_class=quick_socket.QuickConnection.

Jupyter's server leaves Nagle's algorithm on: a small packet waits until the browser has
acknowledged the one before, which Linux puts off for up to 40 ms. On one and the same machine that
is nearly half of a live slider's delay: 44 ms with this file, 77 without (median of 60 moves;
tests/benchmarks/slider_latency.py measures both ways). It can go when that program sees no
difference any more, that is, when Jupyter's server sets TCP_NODELAY by itself.
"""

from typing import Any

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class QuickConnection(ZMQChannelsWebsocketConnection):
    """Jupyter's own connection, with TCP_NODELAY set."""

    def connect(self) -> Any:
        self.websocket_handler.set_nodelay(True)
        return super().connect()
