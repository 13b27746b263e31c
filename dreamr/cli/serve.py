"""`dreamr serve`: the endpoint and its page, on a Ray of this machine or on a running cluster."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

from rich.console import Console

from dreamr.cli.inputs import check_models, read_config
from dreamr.config import Config, with_draft
from dreamr.errors import BadInput

APP = "dreamr"


def serve(config: Path | None, draft: str | None, *, host: str, port: int, address: str) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises BadInput, ConfigError, ConnectionError."""
    settled = with_draft(read_config(config, {}), draft)
    check_models(settled)
    if address == "local":
        _check_port(host, port)
    notices = Console(stderr=True)
    ray_serve, app, controller_options = _application(settled)
    from actors.cluster import connected

    with connected(settled.cluster.model_copy(update={"address": address})):
        ray_serve.start(http_options={"host": host, "port": port}, controller_options=controller_options)
        try:
            with notices.status("Loading the models ..."):
                ray_serve.run(app, name=APP)
            shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
            notices.print(f"model {settled.serve.model_name} on http://{shown}:{port}; Ctrl-C stops it")
            threading.Event().wait()
        except KeyboardInterrupt:
            notices.print("stopping")
        finally:
            ray_serve.delete(APP)


def _application(config: Config) -> tuple[Any, Any, Any]:
    """Ray Serve, the application, and options of Serve's controller. Raises BadInput when a package is missing."""
    try:
        from ray import serve as ray_serve

        from serve_app import CONTROLLER_OPTIONS, build
    except ImportError as error:
        raise BadInput(f'serving needs further packages ({error}): pip install "dreamr[serve]"') from error
    return ray_serve, build({"config": config}), CONTROLLER_OPTIONS


def _check_port(host: str, port: int) -> None:
    """Raises BadInput when nothing can listen there."""
    try:
        with socket.create_server((host, port)):
            return
    except (OSError, OverflowError) as error:
        raise BadInput(f"--host {host} --port {port}: cannot listen there ({error}); choose another port.") from error
