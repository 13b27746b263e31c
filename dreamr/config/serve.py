"""`ServeSettings`: the `serve` part of a configuration: names, limits and the place of the secrets."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from dreamr.config.base import Strict


class ImageLimits(Strict):
    """What an image may be before anything of it is decoded."""

    max_images: int = Field(default=8, ge=0)
    """Per request, over the whole conversation."""
    max_bytes: PositiveInt = 8 * 2**20
    """Of one encoded file."""
    max_pixels: PositiveInt = 16_000_000
    allowed_hosts: tuple[str, ...] = ()
    """Hosts (`images.example.org`, or with `:port`) that http(s) URLs may name; without any, only data URLs work."""
    fetch_timeout_s: PositiveFloat = 5.0

    @field_validator("allowed_hosts")
    @classmethod
    def _as_urls_spell_them(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(host.lower() for host in hosts)


class GroupLimits(Strict):
    """How many groups of actors serve the pipeline, by load."""

    min: PositiveInt = 1
    max: PositiveInt = 1
    upscale_delay_s: float = Field(default=10.0, ge=0)
    """How long the load has to be high before a group is added."""
    downscale_delay_s: float = Field(default=300.0, ge=0)
    """How long it has to be low before one is removed."""

    @model_validator(mode="after")
    def _are_a_range(self) -> GroupLimits:
        if self.min > self.max:
            raise ValueError(f"serve.groups.min = {self.min} is above serve.groups.max = {self.max}: lower it.")
        return self


class ServeSettings(Strict):
    """Settings of the endpoint; requests are bounded by these and by `pipeline`."""

    model_name: str = Field(default="dreamr", min_length=1)
    """The name under which clients ask for the pipeline."""
    thinks: bool = True
    """The models begin inside their chain of thought and end it by `</think>`. False: all they write is the answer."""
    num_replicas: PositiveInt = 1
    """HTTP replicas over the same actors."""
    groups: GroupLimits | None = None
    """Each replica has its own actors, and there are as many replicas as the load needs. None: `num_replicas` replicas
    share one group of actors."""
    api_key_env: str = "DREAMR_API_KEY"
    """Environment variable of the replicas with the API keys, separated by commas; unset: everybody may ask."""

    admin_key_env: str = "DREAMR_ADMIN_KEY"
    """Environment variable of the replicas with the keys for `/v1/admin/...`; unset: these paths answer 403."""

    max_running: PositiveInt = 4
    """Answers that a group of actors works on at once; more wait in line. All replicas of a shared group together."""
    max_queued: int = Field(default=16, ge=0)
    """Answers that may wait in line at each replica; more are refused with 503."""
    queue_deadline_s: PositiveFloat = 60.0
    """Longest wait in line."""
    request_deadline_s: PositiveFloat = 600.0
    """Longest time for one answer, from the end of its wait."""
    keep_answers_s: PositiveFloat = 600.0
    """How long an answer is kept for a retry with the same Idempotency-Key."""
    drain_deadline_s: PositiveFloat = 60.0
    """Longest time that a replica which stops, on an update or with fewer replicas, continues its answers."""
    write_ahead_up_to: int = Field(default=1, ge=0)
    """The target writes its own step ahead of the verdict only while so many answers, or fewer, are worked on; with
    more it writes when a draft is rejected. Changes no token, only who has to wait."""
    draft_up_to: PositiveInt = 1000
    """Drafting stops while more answers than this are worked on: the target then writes every step."""

    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may call the endpoint from a browser, such as `https://app.example.org`; `*`: all."""

    max_body_bytes: PositiveInt = 32 * 2**20
    """Of one request."""
    max_buffered_bytes: PositiveInt = 256 * 2**20
    """Of all request bodies that a replica holds at once; more are refused with 503."""
    body_deadline_s: PositiveFloat = 60.0
    """Longest time for sending a body."""
    max_text_chars: PositiveInt = 100_000
    """Of all texts of a conversation together."""
    max_messages: PositiveInt = 64
    max_choices: PositiveInt = 4
    """Largest `n`."""
    max_window: PositiveInt = 16
    images: ImageLimits = ImageLimits()

    def of_one_replica(self) -> ServeSettings:
        """One replica's share of what the actors are to work on at once, where replicas use the same ones.

        Rounded down, but at least 1, except for a limit of 0.
        """
        if self.groups is not None:
            return self
        limits = {name: getattr(self, name) for name in ("max_running", "write_ahead_up_to", "draft_up_to")}
        share = {name: min(limit, max(1, limit // self.num_replicas)) for name, limit in limits.items()}
        return self.model_copy(update=share)

    @model_validator(mode="after")
    def _replicas_share_actors_or_have_their_own(self) -> ServeSettings:
        if self.groups is not None and self.num_replicas > 1:
            raise ValueError(
                f"serve.num_replicas = {self.num_replicas} and serve.groups exclude each other: with groups, the load "
                "decides how many replicas there are; leave num_replicas out."
            )
        return self

    @model_validator(mode="after")
    def _names_can_be_asked_for(self) -> ServeSettings:
        if not self.model_name.isprintable() or self.model_name != self.model_name.strip():
            raise ValueError(
                f"serve.model_name {self.model_name!r} cannot be typed: leave out blanks and control signs."
            )
        return self
