"""A server of grpc.health.v1: `health.py PORT FILE` is SERVING for as long as FILE is there."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc


def main() -> None:
    port, healthy = sys.argv[1], Path(sys.argv[2])

    def check(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return b"\x08\x01" if healthy.exists() else b"\x08\x02"  # status: SERVING, NOT_SERVING

    server = grpc.server(ThreadPoolExecutor(2))
    handlers: dict[str, Any] = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    service = grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
