"""What travels as JSON between trainer and gateway: requests as pydantic checks them, hence as `/docs` shows them."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from tieredfs_gateway.datasets.contract import DatasetSpec, OnBadShard, OrderSpec, Shuffle
from tieredfs_gateway.datasets.errors import CODES

TEXT_MAX: Final = 16_384
COLUMNS_MAX: Final = 10_000
BATCH_SIZE_MAX: Final = 1 << 24
SEED_MAX: Final = (1 << 63) - 1

Text = Annotated[str, Field(max_length=TEXT_MAX)]


class SessionRequest(BaseModel):
    """What to read, and in which order: `contract.DatasetSpec` and `contract.OrderSpec`."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[str, Field(min_length=1, max_length=4096, description="Path, directory or glob in the volume.")]
    columns: Annotated[list[Text] | None, Field(max_length=COLUMNS_MAX)] = None
    filter: Annotated[Text | None, Field(description='`dep_delay > 0 and origin in ("JFK", "LGA")`')] = None
    format: Annotated[str | None, Field(max_length=32)] = None
    on_bad_shard: OnBadShard = OnBadShard.FAIL
    transforms: Annotated[list[Text], Field(max_length=64)] = []
    batch_size: Annotated[int, Field(ge=1, le=BATCH_SIZE_MAX)]
    shuffle: Shuffle = Shuffle.NONE
    seed: Annotated[int, Field(ge=0, le=SEED_MAX)] = 0
    window_rows: Annotated[int, Field(ge=1, le=1 << 40)] = 65_536
    version: Annotated[str | None, Field(max_length=64, description="This version, or `version_gone`.")] = None
    fresh: Annotated[bool, Field(description="The newest version, even while others read an older one.")] = False

    def key(self) -> tuple[DatasetSpec, OrderSpec]:
        columns = None if self.columns is None else tuple(self.columns)
        spec = DatasetSpec(self.source, columns, self.filter, self.format, self.on_bad_shard, tuple(self.transforms))
        return spec, OrderSpec(self.batch_size, self.shuffle, self.seed, self.window_rows)


class LocalOffer(BaseModel):
    """Where trainers of the same host get batches in shared memory. `socket`: a path, or `@name` for an abstract one."""

    boot_id: str
    socket: str


class SessionAnswer(BaseModel):
    """`schema_ipc`: an Arrow IPC schema message, base64."""

    session: str
    version: str
    schema_ipc: str
    local: LocalOffer | None
    skipped: dict[str, str]


class StreamShown(BaseModel):
    """One stream of a session: at which batch of which epoch, and how fast."""

    client: str
    form: str
    epoch: int
    batch: int
    stride: int
    rows: int
    rows_per_s: int
    sent_bytes: int
    gateway_waited_s: float


class SessionShown(BaseModel):
    """A session: who reads what, how far. `batches`, `rows`: of all its streams, those that ended too."""

    session: str
    client: str
    source: str
    version: str
    batches: int
    rows: int
    idle_s: float
    streams: list[StreamShown]


class Health(BaseModel):
    """The gateway answers."""

    status: Literal["ok"] = "ok"


class CountAnswer(BaseModel):
    """Of one epoch, after the filter."""

    rows: int
    batches: int


class ErrorBody(BaseModel):
    """`code` is one of `errors.CODES`. `retryable`: the same request may succeed later."""

    code: Annotated[str, Field(json_schema_extra={"enum": [*CODES]})]
    message: str
    retryable: bool


class ErrorAnswer(BaseModel):
    """Every error looks like this."""

    error: ErrorBody


Responses = dict[int | str, dict[str, Any]]


def failures(*codes: str) -> Responses:
    """What a route may answer instead of what was asked for: each status, with the codes that come with it."""
    by_status: dict[int | str, list[str]] = {}
    for code in codes:
        by_status.setdefault(CODES[code].status, []).append(code)
    return {
        status: {"model": ErrorAnswer, "description": f"One of: {', '.join(named)}."}
        for status, named in sorted(by_status.items(), key=str)
    }
