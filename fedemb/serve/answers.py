"""What the service answers, as OpenAPI shows it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

VersionNumber = Annotated[
    int, Field(description="windows applied since the run ended; 0 is the trained model")
]
Sequence = Annotated[int, Field(description="the last interaction that this version knows")]
Name = Annotated[str, Field(max_length=1024)]


class Vectors(BaseModel):
    """Vectors in the order that was asked for, all of one version."""

    table: str
    version: VersionNumber
    sequence: Sequence
    time: int | None = Field(default=None, description="epoch seconds, where vectors depend on time")
    ids: list[str]
    vectors: list[list[float]]
    precisions: list[list[float]] | None = Field(
        default=None, description="of Gaussian rows, whose vectors are their means"
    )


class Neighbour(BaseModel):
    """A row near the one that was asked for."""

    id: str
    score: float
    low: float | None = Field(
        default=None, description="of Gaussian rows: the cosine is above it with probability 0.95"
    )
    high: float | None = Field(default=None, description="likewise, below it")


class Neighbours(BaseModel):
    """Rows near one, the nearest first, without itself."""

    table: str
    version: VersionNumber
    sequence: Sequence
    time: int | None = None
    id: str
    measure: str = Field(description="cosine (more is nearer), or distance in curved space (less is nearer)")
    neighbours: list[Neighbour]


class LookUp(BaseModel):
    """Which vectors."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: list[Name] = Field(min_length=1)
    table: str | None = Field(default=None, description="null: the main one")
    time: int | float | str | None = None


class TableAnswer(BaseModel):
    """A table that is served."""

    name: str
    entity: str
    rows: int
    dim: int
    manifold: str
    curvature: float


class Tables(BaseModel):
    """What is served."""

    version: VersionNumber
    sequence: Sequence
    depends_on_time: bool
    learns: bool
    why_not: str | None = Field(default=None, description="why interactions are not taken, if they are not")
    tables: list[TableAnswer]


class AcceptedAnswer(BaseModel):
    """Interactions that are on the disk: they will be applied whatever happens to the service."""

    first: int = Field(description="sequence number of the first one")
    last: int = Field(description="applied once a version's sequence is at least this")
    repeated: bool = Field(description="whether they were accepted before, under the same Idempotency-Key")


class Saved(BaseModel):
    """A state on the disk, which `fedemb train resume=` takes up."""

    version: VersionNumber
    sequence: Sequence


class Wrong(BaseModel):
    """Something is wrong with one value of a request; nothing of the request was taken."""

    loc: list[str | int]
    msg: str
    type: str


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str | list[Wrong]


class Health(BaseModel):
    """Whether the service lives, or can be sent requests."""

    status: str
