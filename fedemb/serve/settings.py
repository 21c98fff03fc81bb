"""What ``fedemb serve`` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedemb.errors import SettingError

_LOWEST = {
    "port": 0, "window": 1, "queue_limit": 1, "request_limit": 1, "body_limit_bytes": 1024, "max_clients": 1,
    "history": 0, "num_threads": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Settings of a service; defaults and reasons stand in ``conf/serve.yaml``.

    Raises:
        SettingError: If one is out of range.
    """

    host: str
    port: int
    token: str | None = field(repr=False)
    window: int
    interval_seconds: float
    queue_limit: int
    request_limit: int
    body_limit_bytes: int
    learning_rate: float | None
    max_clients: int
    history: int
    snapshot_seconds: float
    num_threads: int

    def __post_init__(self) -> None:
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise SettingError(f"{name} must be a whole number, at least {low}, got {value!r}")
        if self.port > 65_535:
            raise SettingError(f"port must be at most 65535, got {self.port}")
        if self.window > self.queue_limit:
            raise SettingError(
                f"window must be at most queue_limit, {self.queue_limit}, or it never fills, got {self.window}"
            )
        if self.window > self.max_clients:
            raise SettingError(
                f"max_clients must be at least window, {self.window}, for all its clients train together, "
                f"got {self.max_clients}"
            )
        for name in ("interval_seconds", "snapshot_seconds", "learning_rate"):
            value = getattr(self, name)
            if name == "learning_rate" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise SettingError(f"{name} must be a positive number, got {value!r}")
        if not isinstance(self.host, str) or not self.host:
            raise SettingError(f"host must be an address such as 127.0.0.1, got {self.host!r}")
        if self.token is not None and (not isinstance(self.token, str) or len(self.token) < 8):
            raise SettingError("token must be text of at least 8 characters; put quotes around digits")
