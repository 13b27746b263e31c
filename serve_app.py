"""The Ray Serve application: `serve run serve_app:app`, or `serve run serve_app:build config=FILE draft=MODEL`.

Importing this module starts nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig

from dreamr.config import Config, load_config, with_draft
from dreamr.config.serve import ServeSettings
from dreamr.serve.errors import RETRY_AFTER_S
from dreamr.serve.replica import EndpointReplica

LOAD_WINDOW_S = 10.0
"""Autoscaling goes by the mean load over so long."""
MAX_QUEUED_AT_PROXY = 100
"""Requests that may wait at a proxy when no replica takes any more."""

# Serve replaces a process after three failed health checks in a row: a hung proxy after at most 3 x (2 + 6) s, a hung
# replica after 3 x 10 s to 5 + 3 x 10 s. Every check has seconds to be answered, so that load alone does not fail three
# of them. The proxy is found first: while one was stopped, checks of the replicas that streamed to it failed as well.
REPLICA_CHECK_PERIOD_S, REPLICA_CHECK_TIMEOUT_S = 5.0, 10.0
"""The timeout is above the time for which a replica waits for its actors (`SILENT_AFTER_S`)."""
CONTROLLER_OPTIONS = {
    "runtime_env": {
        "env_vars": {
            # A proxy that is not ready after three times so long is killed, which a busy machine reaches with Ray's 5.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "6",
            "RAY_SERVE_PROXY_GRACEFUL_SHUTDOWN_TIMEOUT_S": "1",
            # At once, and not after `drain_deadline_s`: a replica that hangs ends no answer.
            "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        }
    }
}
"""For `serve.start`: settings that Serve's controller reads when it starts. They cannot be set per application."""


def build(arguments: dict[str, Any] | None = None) -> Application:
    """The application over a configuration file (`{"config": path}`), a `Config`, or the built-in pair (`{}`).

    `draft` replaces the configured draft model: a folder, a hub id or the name of a built-in model.
    """
    arguments = arguments or {}
    if unknown := set(arguments) - {"config", "draft"}:
        raise ValueError(f"unknown arguments {sorted(unknown)}: there are 'config', a file, and 'draft', a model.")
    given = arguments.get("config")
    config = given if isinstance(given, Config) else load_config(Path(given) if given else None)
    config = with_draft(config, arguments.get("draft"))
    limits = config.serve.of_one_replica()
    deployment = serve.deployment(
        name="dreamr",
        # The replica's own queue decides who waits and who is refused: Serve must not hold requests back.
        max_ongoing_requests=10 * (limits.max_running + limits.max_queued) + 100,
        max_queued_requests=MAX_QUEUED_AT_PROXY,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        # An update starts all new replicas before the old ones stop.
        max_surge_percent=100,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=REPLICA_CHECK_PERIOD_S,
        health_check_timeout_s=REPLICA_CHECK_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=limits.drain_deadline_s,
        **_scale(limits),
    )
    return deployment(serve.ingress()(EndpointReplica)).bind(config)


def _scale(limits: ServeSettings) -> dict[str, Any]:
    """How many replicas there are: a fixed number, or by load. In that case each has its actors, and sessions stay."""
    if limits.groups is None:
        return {"num_replicas": limits.num_replicas}
    scaling = AutoscalingConfig(
        min_replicas=limits.groups.min,
        initial_replicas=limits.groups.min,
        max_replicas=limits.groups.max,
        target_ongoing_requests=limits.max_running,
        look_back_period_s=LOAD_WINDOW_S,
        upscale_delay_s=limits.groups.upscale_delay_s,
        downscale_delay_s=limits.groups.downscale_delay_s,
    )
    router = RequestRouterConfig(
        request_router_class="dreamr.serve.affinity.SessionRouter",  # type: ignore[arg-type]  # imported by Serve
        request_router_kwargs={"busy_at": limits.max_running},
    )
    return {"autoscaling_config": scaling, "request_router_config": router}


app = build
"""Ray Serve calls either name; one without arguments serves the built-in pair."""
