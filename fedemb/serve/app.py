"""The routes: what comes in is checked, what goes out is of one version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
from fastapi import Body, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from torch import Tensor

from fedemb.data.cells import NO_TIME
from fedemb.errors import RunError
from fedemb.gaussian import Gaussian, split
from fedemb.report.summary import versions
from fedemb.serve.answers import (
    AcceptedAnswer,
    Health,
    LookUp,
    Name,
    Neighbour,
    Neighbours,
    Refusal,
    Saved,
    TableAnswer,
    Tables,
    Vectors,
)
from fedemb.serve.fields import Problem, read_times
from fedemb.serve.gate import App, gate
from fedemb.serve.queue import KeyReusedError, QueueFullError
from fedemb.serve.rows import Version, nearest
from fedemb.serve.service import Service
from fedemb.similarity import similarity
from fedemb.types import Table

_SAVE_SECONDS = 60.0
_MOST_NEIGHBOURS = 1000
_REFUSALS: dict[int | str, dict[str, Any]] = {422: {"model": Refusal}, 401: {"model": Refusal}}


def application(service: Service) -> App:
    """The whole service as an ASGI application; it starts and ends with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.close)

    api = FastAPI(
        title="fedemb",
        version=versions()["fedemb"],
        description="Vectors that go on learning: look-ups are of one version, interactions make the next ones.",
        lifespan=lifespan,
    )
    api.add_exception_handler(RequestValidationError, _invalid)
    _add_health(api, service)
    _add_look_ups(api, service)
    _add_interactions(api, service)
    routes = frozenset(str(getattr(route, "path", "other")) for route in api.routes)
    limit = service.settings.body_limit_bytes
    return gate(api, service.settings.token, limit, service.metrics, routes)


async def _invalid(request: Request, error: Exception) -> Response:
    """What is wrong and where, without what was sent: that may be long, or no JSON."""
    assert isinstance(error, RequestValidationError)
    wrong = [{"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in error.errors()]
    return JSONResponse({"detail": wrong}, 422)


def _problem(status: int, loc: Sequence[str | int], message: str, kind: str) -> HTTPException:
    return HTTPException(status, [{"loc": list(loc), "msg": message, "type": kind}])


def _add_health(api: FastAPI, service: Service) -> None:
    @api.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health(status="alive")

    @api.get("/readyz", tags=["health"], responses={503: {"model": Health}})
    async def readyz(response: Response) -> Health:
        """Whether all that was accepted before the start is applied."""
        if not service.ready:
            response.status_code = 503
            return Health(status="failed" if service.failed else "applying what was accepted before")
        return Health(status="ready")

    @api.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _table(service: Service, name: str | None, where: str) -> Table:
    if name is None:
        return next(iter(service.visible.values()))
    if name not in service.visible:
        known = ", ".join(service.visible)
        raise _problem(422, [where, "table"], f"table must be one of {known}, got {name!r}", "unknown_table")
    return service.visible[name]


def _rows(service: Service, table: Table, names: Sequence[str], where: str) -> Tensor:
    most = service.settings.request_limit
    if len(names) > most:
        raise _problem(422, [where], f"at most {most} ids (request_limit), got {len(names)}", "too_long")
    ids = service.ids[table.entity]
    for place, name in enumerate(names):
        if name not in ids:
            message = f"{name!r} is no {table.entity} that the run knows"
            raise _problem(404, [where, place], message, "unknown_id")
    return torch.tensor([ids[name] for name in names], dtype=torch.int64)


def _moment(service: Service, table: Table, time: int | float | str | None, where: str) -> int | None:
    task, main = service.temporal, next(iter(service.visible.values()))
    if time is None:  # as they are now: in the last slice of time
        return None if task is None or table is not main else int(task.slices[-1]) - 1
    if task is None:
        message = "vectors of this run do not depend on time; leave time out"
        raise _problem(422, [where, "time"], message, "no_time")
    if table is not main:
        message = f"only the main table depends on time, got {table.name!r}; leave time out"
        raise _problem(422, [where, "time"], message, "no_time")
    seconds = read_times([time])[0]
    if seconds == NO_TIME:
        message = f"a time must be ISO 8601 or epoch seconds, got {time!r}"
        raise _problem(422, [where, "time"], message, "no_time")
    return seconds


async def _vectors(
    service: Service, table: Table, names: list[str], moment: int | None, where: str
) -> Vectors:
    rows, version = _rows(service, table, names, where), service.version
    if moment is None:
        found = version.tables[table.name].take(rows)
    else:
        found = (await asyncio.to_thread(service.at_time, version, moment))[rows]
    precisions = None
    if isinstance(table.manifold, Gaussian):
        found, precisions = split(found)
    return Vectors(
        table=table.name,
        version=version.number,
        sequence=version.sequence,
        time=moment,
        ids=names,
        vectors=found.tolist(),
        precisions=None if precisions is None else precisions.tolist(),
    )


def _neighbours(
    service: Service, version: Version, table: Table, name: str, row: int, moment: int | None, count: int
) -> Neighbours:
    vectors = None if moment is None else service.at_time(version, moment)
    own = version.tables[table.name].take(torch.tensor([row]))[0] if vectors is None else vectors[row]
    found = nearest(version, table, vectors, own, count + 1)
    names = service.names[table.entity]
    others = [(at, score) for at, score in found if at != row][:count]
    near = [Neighbour(id=names[at], score=score) for at, score in others]
    if isinstance(table.manifold, Gaussian) and near:
        rows = version.tables[table.name].take(torch.tensor([at for at, _ in others]))
        between = similarity(own.expand_as(rows), rows)
        bounds = zip(between.low.tolist(), between.high.tolist(), strict=True)
        near = [
            one.model_copy(update={"low": low, "high": high})
            for one, (low, high) in zip(near, bounds, strict=True)
        ]
    return Neighbours(
        table=table.name,
        version=version.number,
        sequence=version.sequence,
        time=moment,
        id=name,
        measure="cosine" if table.manifold.curvature == 0 else "distance",
        neighbours=near,
    )


def _add_look_ups(api: FastAPI, service: Service) -> None:
    refusals = {**_REFUSALS, 404: {"model": Refusal}}

    @api.get("/tables", tags=["vectors"])
    async def tables() -> Tables:
        """What is served, and whether it learns."""
        version = service.version
        return Tables(
            version=version.number,
            sequence=version.sequence,
            depends_on_time=service.temporal is not None,
            learns=service.why_not is None,
            why_not=service.why_not,
            tables=[
                TableAnswer(
                    name=t.name,
                    entity=t.entity,
                    rows=t.num_rows,
                    dim=t.dim,
                    manifold=t.manifold.name,
                    curvature=t.manifold.curvature,
                )
                for t in service.visible.values()
            ],
        )

    @api.get("/vectors", tags=["vectors"], responses=refusals)
    async def vectors(
        id: Annotated[list[Name], Query(min_length=1)],
        table: str | None = None,
        time: Annotated[str | None, Query(description="ISO 8601 or epoch seconds")] = None,
    ) -> Vectors:
        """Vectors by name, all of one version."""
        found = _table(service, table, "query")
        return await _vectors(service, found, id, _moment(service, found, time, "query"), "query")

    @api.post("/vectors", tags=["vectors"], responses=refusals)
    async def many_vectors(look_up: LookUp) -> Vectors:
        """The same, for more names than a URL holds."""
        found = _table(service, look_up.table, "body")
        moment = _moment(service, found, look_up.time, "body")
        return await _vectors(service, found, look_up.ids, moment, "body")

    @api.get("/neighbours", tags=["vectors"], responses=refusals)
    async def neighbours(
        id: Name,
        k: Annotated[int, Query(ge=1, le=_MOST_NEIGHBOURS)] = 10,
        table: str | None = None,
        time: Annotated[str | None, Query(description="ISO 8601 or epoch seconds")] = None,
    ) -> Neighbours:
        """The nearest rows: by cosine, or by distance where the space is curved."""
        found = _table(service, table, "query")
        moment, row = _moment(service, found, time, "query"), int(_rows(service, found, [id], "query")[0])
        return await asyncio.to_thread(
            _neighbours, service, service.version, found, id, row, moment, k
        )  # a table's height is too much for the thread that answers everybody


def _add_interactions(api: FastAPI, service: Service) -> None:
    model: Any = service.fields.model() if service.why_not is None else BaseModel
    limit = Field(min_length=1, max_length=service.settings.request_limit)
    refusals = {**_REFUSALS, 409: {"model": Refusal}, 413: {"model": Refusal}, 429: {"model": Refusal}}
    refusals[503] = {"model": Refusal}

    async def interactions(
        given: Any,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> AcceptedAnswer:
        """Interactions, in order; answered when they are on the disk. Wrong ones refuse the whole request."""
        queue = service.queue
        if service.why_not is not None:
            raise HTTPException(409, f"this run takes no interactions: {service.why_not}")
        if queue is None or service.failed:
            raise HTTPException(503, "the service does not learn at the moment; see /readyz")
        entries, problems = service.fields.entries(given)
        if problems:
            raise HTTPException(422, [_wrong(problem) for problem in problems[:10]])
        if len(entries) > service.settings.queue_limit:
            message = f"at most {service.settings.queue_limit} interactions fit into the queue (queue_limit)"
            raise HTTPException(413, message)
        try:
            accepted = await asyncio.wrap_future(queue.put(entries, idempotency_key))
        except QueueFullError as full:
            service.metrics.refused.inc(len(entries))
            headers = {"Retry-After": str(max(1, round(service.settings.interval_seconds)))}
            raise HTTPException(429, f"{full} (queue_limit); try again later", headers) from full
        except KeyReusedError as reused:
            message = "this Idempotency-Key came with other interactions before"
            raise HTTPException(422, message) from reused
        except RunError as error:
            raise HTTPException(503, str(error)) from error
        if not accepted.repeated:
            service.metrics.accepted.inc(len(entries))
        return AcceptedAnswer(first=accepted.first, last=accepted.last, repeated=accepted.repeated)

    # The schema of an interaction is that of the run's data: known only now.
    interactions.__annotations__["given"] = Annotated[list[model], limit, Body()]
    api.post("/interactions", status_code=202, tags=["learning"], responses=refusals)(interactions)

    @api.post("/snapshot", tags=["learning"], responses={**_REFUSALS, 409: {"model": Refusal}})
    async def snapshot() -> Saved:
        """Writes the present state down, for `fedemb train resume=`."""
        if service.queue is None:
            raise HTTPException(409, f"this run takes no interactions: {service.why_not}")
        try:
            facts = await asyncio.wait_for(asyncio.wrap_future(service.save()), _SAVE_SECONDS)
        except (RunError, TimeoutError) as error:
            raise HTTPException(503, f"no state was written ({error}); see /readyz") from error
        return Saved(version=facts["number"], sequence=facts["sequence"])


def _wrong(problem: Problem) -> dict[str, Any]:
    return {"loc": ["body", problem.place, problem.field], "msg": problem.message, "type": "unknown_value"}
