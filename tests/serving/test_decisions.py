"""What decides and is pure: turns, states, tokens, codecs, the tables of errors, the configuration of transforms."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.rig import numbers
from tieredfs.errors import ConfigurationError, StateMismatchError, TieredError, domain_errors
from tieredfs_client.dataset import failures, http, ranks, state, turns
from tieredfs_gateway import addresses
from tieredfs_gateway.datasets import errors, frames, tokens, transforms, wire
from tieredfs_gateway.datasets.contract import NumberedBatch
from tieredfs_gateway.datasets.frames import Codec

SECRET = b"0123456789abcdef0123"


# ---- turns -------------------------------------------------------------------------------------------------------------


def taken(
    start: int, place: turns.Place, remainder: turns.Remainder, size: turns.EpochSize, batch_size: int
) -> list[int]:
    """The batches of one worker of one rank; -1 for an empty one."""
    steps = turns.steps_left(start, place.world_size, remainder, size, batch_size)
    mine, found, turn = turns.turns_from(start, place, steps), [], 0
    while not mine.is_over(turn):
        index = mine.index_of(turn)
        fill = turns.beyond(index, remainder, size)
        found.append(index if fill is None else -1 if fill.index is None else fill.index)
        turn += 1
    return found


@given(
    st.integers(0, 60), st.integers(1, 7), st.integers(1, 7), st.integers(0, 5), st.integers(1, 4), st.integers(0, 9)
)
def test_each_batch_once_whatever_the_world_size_the_workers_and_the_restart(
    batches: int, world: int, later_world: int, steps: int, workers: int, short: int
) -> None:
    size = turns.EpochSize(max(0, batches * 10 - short if batches else 0), batches)
    before = []
    for rank in range(world):
        before += taken(0, turns.Place(rank, world), "pad", size, 10)[:steps]
    start = min(steps, -(-batches // world)) * world
    after = []
    for rank in range(later_world):
        parts = [
            taken(start, turns.Place(rank, later_world, worker, workers), "pad", size, 10) for worker in range(workers)
        ]
        whole = taken(start, turns.Place(rank, later_world), "pad", size, 10)
        assert [parts[n % workers][n // workers] for n in range(len(whole))] == whole, "a DataLoader asks in turn"
        after += whole
    assert sorted(index for index in before + after if index >= 0) == list(range(batches))


@given(st.integers(1, 60), st.integers(1, 7), st.integers(0, 9))
def test_ranks_get_equally_many(batches: int, world: int, short: int) -> None:
    size = turns.EpochSize(batches * 10 - short, batches)
    for remainder in turns.REMAINDERS:
        found = [taken(0, turns.Place(rank, world), remainder, size, 10) for rank in range(world)]
        assert len({len(one) for one in found}) == 1
        seen = [index for one in found for index in one]
        if remainder == "drop":
            assert len(set(seen)) == len(seen) == size.rows // 10 // world * world
        if remainder == "wrap":
            assert -1 not in seen
            assert set(seen) == set(range(batches))


@pytest.mark.parametrize(("rank", "world"), [(0, 0), (1, 1), (-1, 2), (0, -3)])
def test_ranks_that_cannot_be(rank: int, world: int) -> None:
    with pytest.raises(ConfigurationError, match=r"rank|world_size"):
        ranks.detect_rank(rank, world)


def test_ranks_come_from_arguments_then_from_the_environment() -> None:
    environment = {"RANK": "3", "WORLD_SIZE": "8"}
    assert ranks.detect_rank(1, 2, environment) == (1, 2)
    assert ranks.detect_rank(None, None, environment) == (3, 8)
    assert ranks.detect_rank(None, None, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}) == (1, 2)
    assert ranks.detect_rank(None, None, {}) == (0, 1)
    with pytest.raises(ConfigurationError, match="numbers"):
        ranks.detect_rank(None, None, {"RANK": "x", "WORLD_SIZE": "8"})
    with pytest.raises(ConfigurationError, match="come together"):
        ranks.detect_rank(1, None, environment)


# ---- states ------------------------------------------------------------------------------------------------------------

READS = {"source": "a", "version": "v", "batch_size": "10"}


def test_a_state_goes_through_json_unchanged() -> None:
    for worker in (None, state.WorkerState(1, 2, 3, 0, 1)):
        made = state.State(2, 17, READS, worker)
        assert state.decode(json.loads(json.dumps(state.encode(made)))) == made


FORGERIES: dict[str, Any] = {
    "another position": {"batches": 18},
    "another epoch": {"epoch": 0},
    "a negative position": {"batches": -1},
    "a position that is no number": {"batches": "17"},
    "a position that is true": {"batches": True},
    "a position beyond all bounds": {"batches": 1 << 80},
    "another dataset": {"reads": {"source": "b"}},
    "reads that are none": {"reads": 7},
    "another kind": {"kind": "checkpoint"},
    "another format": {"format": 99},
    "a worker": {"worker": {"worker": 0}},
    "a check of its own": {"check": "0" * 64},
    "more than it should have": {"extra": 1},
}


@pytest.mark.parametrize("changes", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_state_is_refused(changes: dict[str, Any]) -> None:
    made = state.encode(state.State(2, 17, READS))
    with pytest.raises(StateMismatchError):
        state.decode(made | changes)


@pytest.mark.parametrize("document", [None, [], {}, "text", {"kind": "tieredfs-dataset"}])
def test_what_is_no_state_is_refused(document: object) -> None:
    with pytest.raises(StateMismatchError):
        state.decode(document)


def test_what_differs_is_named() -> None:
    with pytest.raises(StateMismatchError, match="batch_size: 10 in the state, 20 here"):
        state.check_fits(state.State(0, 0, READS), READS | {"batch_size": "20"})


# ---- tokens ------------------------------------------------------------------------------------------------------------


def code_of(token: str | None, source: str | None, now_s: float = 50) -> str:
    try:
        tokens.check_token(token, SECRET, source, now_s)
    except errors.Refusal as refusal:
        return refusal.code
    return "fine"


def test_a_token_opens_what_it_names_and_what_is_below_until_it_expires() -> None:
    token = tokens.make_token(SECRET, ["datasets/flights", "one.parquet"], 100)
    assert code_of(token, "datasets/flights") == code_of(token, "/datasets//flights/2013/*.parquet") == "fine"
    assert code_of(token, "one.parquet") == code_of(token, None) == "fine"
    assert code_of(token, "datasets/flights2") == code_of(token, "datasets") == "token_scope"
    assert code_of(token, "datasets/flights/../secret") == "token_scope"
    assert code_of(token, "datasets/flights", 100) == "token_expired"
    assert code_of(tokens.make_token(SECRET, ["*"], 100), "anything/at/all") == "fine"


def test_a_token_that_was_changed_is_refused() -> None:
    token = tokens.make_token(SECRET, ["a"], 100)
    body, _, mac = token.partition(".")
    other = tokens.make_token(b"another secret of the length", ["a"], 100)
    swapped = f"{tokens.make_token(SECRET, ['b'], 100).partition('.')[0]}.{mac}"
    for bad in (other, swapped, body, f"{body}.", f".{mac}", token[:-2], "ü" * 50, "a" * 10_000):
        assert code_of(bad, "a") == "token_invalid", bad
    assert code_of(None, "a") == code_of("", "a") == "token_missing"


def test_tokens_that_cannot_be_made() -> None:
    for secret, sources in ((b"short", ["a"]), (SECRET, []), (SECRET, ["/"]), (SECRET, ["a", "b" * 5000])):
        with pytest.raises(ConfigurationError):
            tokens.make_token(secret, sources, 100)


# ---- errors ------------------------------------------------------------------------------------------------------------


def test_every_domain_error_has_a_code_and_every_code_an_error() -> None:
    kinds = {kind for kind in domain_errors() if kind.__module__ == "tieredfs.errors"}
    assert set(errors.CODE_OF) == kinds
    assert set(errors.CODE_OF.values()) <= set(errors.CODES)
    assert set(failures.ERROR_OF) == set(errors.CODES)
    for code, answer in errors.CODES.items():
        told = failures.domain_error(errors.Refusal(code, "text").document(), answer.status)
        assert code == "session_unknown" or (isinstance(told, TieredError) and "text" in str(told))
        assert not answer.retryable or failures.is_worth_waiting(told), code


def test_an_unknown_answer_is_an_error_of_the_domain() -> None:
    answers: list[object] = [None, [], {}, {"error": 1}, {"error": {"code": "new", "message": "m", "retryable": True}}]
    for document in answers:
        assert isinstance(failures.domain_error(document, 502), TieredError)


def test_an_internal_error_tells_no_details() -> None:
    assert errors.told(RuntimeError("password")).message == "the gateway failed; its log says why"


# ---- frames ------------------------------------------------------------------------------------------------------------


def test_frames_of_any_codec_make_one_stream_with_a_dictionary_per_batch() -> None:
    encoded = [
        pa.RecordBatch.from_pydict({"w": pa.array(words).dictionary_encode()})
        for words in (["a", "b"], ["c"], ["b", "c", "d"])
    ]
    head = frames.head(encoded[0].schema)
    codecs = [codec for codec in Codec if codec is not Codec.AUTO]
    sent = [(rows, codec) for codec in codecs for rows in encoded]
    data = head + b"".join(frames.frame(rows, len(head), codec) for rows, codec in sent) + frames.END
    found = list(frames.batches_of(data))
    assert [rows.to_pydict() for rows in found] == [rows.to_pydict() for rows, _ in sent]


@pytest.mark.parametrize("codec", [codec for codec in Codec if codec is not Codec.AUTO])
def test_a_trainer_cuts_apart_what_came_as_one_message(codec: Codec) -> None:
    words = pa.array(["a", "b", "a", None, "c"] * 200).dictionary_encode()
    whole = pa.RecordBatch.from_pydict({"id": range(1000), "w": words})
    other = whole.slice(0, 1000).filter(pa.array([True, False] * 500))
    cuts = [(0, 300), (300, 300), (600, 300), (900, 0), (900, 0), (900, 100), (950, 50)]
    batches = [NumberedBatch(at, whole, *cut) for at, cut in enumerate(cuts)] + [NumberedBatch(7, other)]
    runs = frames.runs(batches, 3)
    assert [run.row_counts for run in runs] == [(300, 300, 300), (0,), (0,), (100,), (50,), (500,)]
    head = frames.head(whole.schema)
    data = head + b"".join(frames.frame(run.rows, len(head), codec, run.row_counts) for run in runs) + frames.END
    reader = pa.ipc.open_stream(data)
    messages = [http.Message.of(*one) for one in reader.iter_batches_with_custom_metadata()]
    found = [rows for message in messages for rows in message.cut()]
    assert [rows.to_pydict() for rows in found] == [batch.rows.to_pydict() for batch in batches]


def test_row_counts_that_do_not_fit_are_an_error() -> None:
    rows = pa.RecordBatch.from_pydict({"id": range(10)})
    for text in (b"", b"5,4", b"11,-1", b"a,b", b"5,,5"):
        with pytest.raises(ValueError):  # noqa: PT011 - that, or what `int` says
            http.Message.of(rows, {http.ROWS_KEY: text})


def test_a_frame_that_is_larger_than_the_scratch_is_whole() -> None:
    scratch = pa.py_buffer(bytearray(16_384))
    for count in (1000, 10_000, 2000, 2046, 2047, 2048, 10):
        rows = pa.RecordBatch.from_pydict({"id": range(count)})
        head = frames.head(rows.schema)
        data = head + frames.frame(rows, len(head), Codec.NONE, scratch=scratch) + frames.END
        assert next(frames.batches_of(data)).equals(rows)


def test_a_stream_fits_exactly_into_its_length_and_is_cut_into_what_it_was_made_of() -> None:
    whole = numbers(1000).combine_chunks().to_batches()[0]
    batches = [NumberedBatch(at // 300, whole, at, 300) for at in (0, 300, 600)]
    batches.append(NumberedBatch(3, whole, 0, 0))
    rows = frames.joined(batches)
    assert len(rows) == 1, "neighbours are written as one"
    target = bytearray(frames.stream_bytes(rows))
    frames.write_stream(rows, memoryview(target))
    found = frames.cut(target, [batch.rows.num_rows for batch in batches])
    assert [each.to_pydict() for each in found] == [batch.rows.to_pydict() for batch in batches]


def test_the_slower_the_link_the_harder_it_is_worth_to_compress() -> None:
    mib = 1 << 20
    speeds = [20_000 * mib, 600 * mib, 100 * mib, 10 * mib]
    chosen = [frames.choose(speed, 2) for speed in speeds]
    assert chosen == [Codec.NONE, Codec.LZ4, Codec.ZSTD, Codec.ZSTD_HIGH]
    order = list(Codec)
    assert [order.index(one) for one in chosen] == sorted(order.index(one) for one in chosen)


def test_a_link_is_measured_and_loopback_is_none() -> None:
    assert wire.Link.to("127.0.0.1", Codec.AUTO).codec is Codec.NONE
    assert wire.Link.to("10.0.0.1", Codec.ZSTD).codec is Codec.ZSTD
    link = wire.Link.to("10.0.0.1", Codec.AUTO)
    chosen = [link.codec]
    for took_s in (10.0, 0.0001):
        link.sent(wire.MEASURE_BYTES, took_s)
        chosen.append(link.codec)
    assert chosen == [Codec.LZ4, Codec.ZSTD_HIGH, Codec.NONE]


HOSTS = {
    "127.0.0.1": True,
    "::1": True,
    "localhost": True,
    "0.0.0.0": False,
    "10.1.1.1": False,
    "gw": False,
    None: False,
}


@pytest.mark.parametrize(("host", "is_so"), HOSTS.items())
def test_loopback(host: str | None, is_so: bool) -> None:
    assert addresses.is_loopback(host) is is_so


# ---- transforms --------------------------------------------------------------------------------------------------------


def test_transforms_are_read_and_names_are_checked() -> None:
    allowed = transforms.parse_transforms(
        '[transforms.small]\nkind = "project"\ncolumns = ["a"]\n'
        '[transforms.mine]\nkind = "function"\npath = "a.b:c"\ntime_limit_s = 5\n'
    )
    assert allowed["mine"].time_limit_s == 5.0
    transforms.check_names(["mine", "small"], allowed)
    with pytest.raises(errors.Refusal, match=r"os\.system.*it has: mine, small"):
        transforms.check_names(["mine", "os.system"], allowed)


@pytest.mark.parametrize(
    "text",
    [
        "[transforms",
        "transforms = 3",
        '[transforms.a]\nkind = "eval"',
        '[transforms.a]\nkind = "project"',
        '[transforms.a]\nkind = "project"\ncolumns = []\nmore = 1',
        '[transforms.a]\nkind = "function"\npath = "__import__(\'os\')"',
        '[transforms.a]\nkind = "function"\npath = "a:b"\ntime_limit_s = -1',
        '[transforms."a b"]\nkind = "project"\ncolumns = []',
    ],
)
def test_transforms_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        transforms.parse_transforms(text)
