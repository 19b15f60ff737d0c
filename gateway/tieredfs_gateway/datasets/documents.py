"""What travels as JSON between trainer and gateway: requests as pydantic checks them, hence as `/docs` shows them."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from tieredfs_gateway.datasets.contract import DatasetSpec, OnBadShard, OrderSpec, Shuffle

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


class CountAnswer(BaseModel):
    """Of one epoch, after the filter."""

    rows: int
    batches: int


class ErrorBody(BaseModel):
    code: str
    message: str
    retryable: bool


class ErrorAnswer(BaseModel):
    """Every error looks like this."""

    error: ErrorBody
