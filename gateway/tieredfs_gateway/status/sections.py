"""The parts of the page, each from a `Document`: verdict, numbers at a glance, what is where, what is not yet safe, what is slow.

Pure; every function returns HTML, and everything that comes from outside passes `text`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Final

from tieredfs.config import format_duration, format_size
from tieredfs.volume import DiskStatus, VolumeStatus
from tieredfs_gateway.status.census import DiskHolding
from tieredfs_gateway.status.charts import Share, area, bar, ceiling
from tieredfs_gateway.status.concerns import Concern, Level, level_of
from tieredfs_gateway.status.document import DiskSpeed, Document, MountLook, Sample

SPANS_S: Final = (300, 900, 1800, 3600)
NOT_KNOWN: Final = "-"
CONCERNS_SHOWN: Final = 12
DISKS_SHOWN: Final = 240
SLOW_DISKS_SHOWN: Final = 8
SSDS_SHOWN: Final = 24
SESSIONS_SHOWN: Final = 24
"""A page of thousands of rows is none; `/status.json` has them all."""
HEARTBEAT_LATE_S: Final = 15.0
"""Three heartbeats missed."""


def text(value: object) -> str:
    """Safe in HTML, whatever bytes a name was made of."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


# ---- at a glance -----------------------------------------------------------------------------------------------------


def verdict(document: Document) -> str:
    level = level_of(document.concerns)
    count = len(document.concerns)
    headline = {
        Level.GOOD: _good_news(document.volume),
        Level.WATCH: f"Nothing is lost. {_things(count)} to look at.",
        Level.BAD: f"Needs help now: {_things(count).lower()} to look at.",
    }[level]
    listed = "".join(_concern(concern) for concern in document.concerns[:CONCERNS_SHOWN])
    if count > CONCERNS_SHOWN:
        listed += f'<li class="watch">{count - CONCERNS_SHOWN} more, in /status.json</li>'
    return (
        f'<div class="verdict {level.value}" role="status"><strong>{headline}</strong>'
        f"{f'<ul>{listed}</ul>' if listed else ''}</div>"
    )


def _good_news(status: VolumeStatus) -> str:
    if status.staged.file_count:
        return f"All is well. {format_size(status.staged.size_bytes)} are on their way to the store."
    return "All is well, and everything is in the store."


def _things(count: int) -> str:
    return "One thing" if count == 1 else f"{count} things"


def _concern(concern: Concern) -> str:
    return f'<li class="{concern.level.value}">{text(concern.text)}. <span class="soft-text">{text(concern.advice)}</span></li>'


def tiles(document: Document) -> str:
    volume = document.volume
    staged, short, dump = volume.staged, volume.short, volume.metadata_dump
    away = sum(not disk.reachable for disk in volume.disks)
    return (
        '<div class="tiles">'
        + "".join(
            (
                _tile(
                    "On SSDs only",
                    format_size(staged.size_bytes),
                    f"{_files(staged.file_count)}, the oldest {format_duration(staged.oldest_age_s)}"
                    if staged.file_count
                    else "nothing waits",
                    Level.GOOD,
                ),
                _tile(
                    "Lacking chunks",
                    format_size(short.size_bytes),
                    f"{_blocks(short.block_count)}, {format_size(short.missing_bytes)} to make"
                    if short.block_count
                    else ("besides what is on disks that are away" if away else "every block is whole"),
                    Level.BAD if short.bare_count else Level.WATCH if short.block_count else Level.GOOD,
                ),
                _tile(
                    "May still be lost",
                    "1 disk" if volume.redundancy == 1 else f"{volume.redundancy} disks",
                    f"{away} of {len(volume.disks)} {'is' if away == 1 else 'are'} away"
                    if away
                    else f"all {len(volume.disks)} answer",
                    Level.BAD if away and not volume.redundancy else Level.WATCH if away else Level.GOOD,
                ),
                _tile(
                    "Dump of the metadata",
                    format_duration(dump.age_s) if dump else "none",
                    f"old, on {len(dump.paths)} disks" if dump else "on any disk of this host",
                    Level.GOOD if dump else Level.WATCH,
                ),
            )
        )
        + "</div>"
    )


def _tile(title: str, value: str, detail: str, level: Level) -> str:
    return (
        f'<div class="card"><h3 class="soft-text small">{title}</h3><span class="value {level.value}">{text(value)}</span>'
        f'<span class="small soft-text">{text(detail)}</span></div>'
    )


def _blocks(count: int) -> str:
    return "1 block" if count == 1 else f"{count:,} blocks"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


# ---- what is where ---------------------------------------------------------------------------------------------------


def where(document: Document) -> str:
    return (
        f'<h2>What is where</h2><div class="cards">{_content(document)}{_ssds(document)}</div>'
        f'<div class="card">{_disks(document)}</div>'
    ).replace("", "")


def _content(document: Document) -> str:
    volume, census = document.volume, document.census
    short, staged = volume.short, volume.staged.size_bytes
    if census is None:
        return _card("Content", "", '<p class="soft-text">The blocks are being counted.</p>')
    bare = short.size_bytes * short.bare_count // short.block_count if short.block_count else 0
    whole = max(0, census.content_bytes - short.size_bytes)
    shares = [
        ("green", "stored", whole),
        ("amber", "stored, lacking chunks", short.size_bytes - bare),
        ("red", "can lose no disk more", bare),
        ("violet", "on SSDs only", staged),
    ]
    shown = [(kind, name, size) for kind, name, size in shares if size or kind == "green"]
    label = ", ".join(f"{format_size(size)} {name}" for _, name, size in shown)
    picture = bar([Share(kind, size) for kind, _, size in shown], sum(size for *_, size in shown), f"Content: {label}")
    legend = "".join(
        f'<li class="k-{kind}">{format_size(size)} <span class="unit">{name}</span></li>' for kind, name, size in shown
    )
    blocks = f"{census.block_count:,} blocks, counted {_ago(document.census_age_s or 0.0)}"
    return _card("Content", blocks, f'{picture}<ul class="legend small">{legend}</ul>')


def _ago(age_s: float) -> str:
    return "just now" if age_s < 2 else f"{format_duration(age_s)} ago"


def _ssds(document: Document) -> str:
    caches = sorted(document.volume.caches, key=lambda cache: (-cache.staged_bytes, cache.host, cache.path))
    if not caches:
        return _card("SSDs", "", '<p class="soft-text">No host has an SSD directory for this volume yet.</p>')
    top = max(1, *(cache.staged_bytes for cache in caches))
    rows = "".join(
        _row(
            f'{text(cache.host)} <span class="soft-text">{text(cache.path)}</span>',
            format_size(cache.staged_bytes) if cache.staged_files else "nothing",
            bar([Share("violet", cache.staged_bytes)], top, f"{format_size(cache.staged_bytes)} staged", kind="thin"),
            f"{_files(cache.staged_files)}, the oldest {format_duration(cache.oldest_age_s)}"
            if cache.staged_files
            else "",
        )
        for cache in caches[:SSDS_SHOWN]
    )
    return _card("SSDs: staged, not yet stored", "by host", f'<ul class="rows">{rows}</ul>')


def _disks(document: Document) -> str:
    holdings = document.census.disks if document.census else {}
    worst_first = sorted(document.volume.disks, key=lambda disk: (disk.reachable, disk.disk))
    disks = sorted(worst_first[:DISKS_SHOWN], key=lambda disk: (disk.domain, disk.disk))
    domains = [(domain, list(members)) for domain, members in groupby(disks, key=lambda disk: disk.domain)]
    lonely = all(len(members) == 1 for _, members in domains)
    count = f"{len(disks)} of {len(worst_first)}" if len(disks) < len(worst_first) else f"{len(disks)}"
    head = f"{count} disks" + ("" if lonely else f" in {len(domains)} failure domains")
    if lonely:
        body = f'<ul class="rows wide">{"".join(_disk(disk, holdings) for disk in disks)}</ul>'
    else:
        body = "".join(_domain(domain, members, holdings) for domain, members in domains)
    legend = (
        '<ul class="legend small"><li class="k-blue">chunks of this volume</li><li class="k-pale">other content of that file '
        "system</li><li>free</li></ul>"
    )
    return f'<div class="head"><h3>Disks</h3><span class="small soft-text">{head}</span></div>{body}{legend}'


def _domain(name: str, disks: Sequence[DiskStatus], holdings: Mapping[int, DiskHolding]) -> str:
    away = sum(not disk.reachable for disk in disks)
    chip = f'<span class="chip bad">{away} away</span>' if away else ""
    rows = "".join(_disk(disk, holdings) for disk in disks)
    return f'<div class="domain"><div class="head"><h3>{text(name)}{chip}</h3></div><ul class="rows wide">{rows}</ul></div>'


def _disk(disk: DiskStatus, holdings: Mapping[int, DiskHolding]) -> str:
    holding = holdings.get(disk.disk)
    chunks = f"{holding.chunk_count:,} chunks, {format_size(holding.chunk_bytes)}" if holding else "no chunks"
    name = f'<span class="unit">{disk.disk}</span> {text(_place_of(disk.url))}{_state(disk)}'
    if not disk.reachable or not disk.total_bytes:
        detail = chunks if disk.reachable or not holding else f"{chunks} out of reach"
        picture = bar([Share("red", 1.0)], 1.0, f"Disk {disk.disk} is away", kind="thin") if not disk.reachable else ""
        return _row(name, '<span class="away">away</span>' if not disk.reachable else "", picture, detail)
    total, free = disk.total_bytes, disk.free_bytes or 0
    own = min(holding.chunk_bytes if holding else 0, total - free)
    picture = bar(
        [Share("blue", own), Share("pale", total - free - own)],
        total,
        f"Disk {disk.disk}: {format_size(total - free)} of {format_size(total)} used, {format_size(own)} by this volume",
        kind="thin",
    )
    return _row(name, f'{format_size(free)} <span class="unit">free of {format_size(total)}</span>', picture, chunks)


def _place_of(url: str) -> str:
    return url.removeprefix("disk://")


def _state(disk: DiskStatus) -> str:
    return "" if disk.state == "active" else f'<span class="chip watch">{text(disk.state)}</span>'


# ---- what is not yet safe --------------------------------------------------------------------------------------------


def unsafe(document: Document) -> str:
    history = document.history
    return (
        '<h2>What is not yet safe</h2><div class="cards">'
        + _over_time(
            "On SSDs only", history, [sample.staged_bytes for sample in history], "violet", _staged_words(document)
        )
        + _over_time(
            "Chunks to make", history, [sample.missing_bytes for sample in history], "amber", _healing_words(document)
        )
        + "</div>"
    )


def _over_time(title: str, history: Sequence[Sample], values: Sequence[int], kind: str, words: str) -> str:
    if not history:
        return _card(title, "", f'<p class="small">{words}</p>')
    span_s = _span_s(history)
    top = ceiling(max(values))
    points = [(sample.at_ns, float(value)) for sample, value in zip(history, values, strict=True)]
    label = f"{title}, over the last {format_duration(span_s)}: now {format_size(values[-1])}, at most {format_size(max(values))}"
    picture = area(points, int(span_s * 1e9), top, label, kind=kind)
    axis = f'<div class="axis small soft-text"><span>{format_duration(span_s)} ago</span><span>now</span></div>'
    scale = f"up to {format_size(int(top))}" if max(values) else "nothing"
    return _card(title, scale, f'{picture}{axis}<p class="small">{words}</p>')


def _span_s(history: Sequence[Sample]) -> int:
    lasted_s = (history[-1].at_ns - history[0].at_ns) / 1e9
    return next((span_s for span_s in SPANS_S if span_s >= lasted_s), SPANS_S[-1])


def _staged_words(document: Document) -> str:
    staged = document.volume.staged
    if not staged.file_count:
        return "Everything that was acknowledged is in the store."
    rates = [mount.stored_bytes_per_s for mount in document.mounts if mount.stored_bytes_per_s is not None]
    rate = f" This host stores {format_size(int(sum(rates)))}/s." if rates else ""
    size, age = format_size(staged.size_bytes), format_duration(staged.oldest_age_s)
    return f"{_files(staged.file_count)} of {size}, the oldest {age}.{rate}"


def _healing_words(document: Document) -> str:
    short, healing = document.volume.short, document.healing
    if not short.block_count:
        return "Every block has all of its chunks."
    missing, age = format_size(short.missing_bytes), format_duration(short.oldest_age_s)
    said = f"{_blocks(short.block_count)} without {missing} of chunks, the oldest for {age}."
    if healing.missing_bytes_per_s is None or healing.remaining_s is None:
        return f"{said} Nothing has been made anew yet."
    return f"{said} {format_size(int(healing.missing_bytes_per_s))}/s are made: about {format_duration(healing.remaining_s)} more."


# ---- what is slow ----------------------------------------------------------------------------------------------------


def slow(document: Document) -> str:
    return (
        f'<h2>What is slow</h2><div class="cards">{_speeds(document)}{_sessions(document)}</div>'
        f'<div class="card">{_mounts(document.mounts)}</div>'
    )


def _speeds(document: Document) -> str:
    title, about = "Disks by time for a chunk", "this host, last minute"
    busy = [speed for speed in document.speeds if speed.read_mean_s is not None or speed.write_mean_s is not None]
    if not busy:
        why = (
            "No mount of this host has read or written a chunk lately."
            if document.mounts
            else "Nothing is mounted on this host."
        )
        return _card(title, about, f'<p class="soft-text small">{why}</p>')
    slowest = sorted(busy, key=_slowest_s, reverse=True)[:SLOW_DISKS_SHOWN]
    top = _slowest_s(slowest[0])
    places = {disk.disk: _place_of(disk.url) for disk in document.volume.disks}
    rows = "".join(_speed(speed, places, top) for speed in slowest)
    legend = '<ul class="legend small"><li class="k-blue">read</li><li class="k-green">write</li></ul>'
    return _card(title, about, f'<ul class="rows">{rows}</ul>{legend}')


def _slowest_s(speed: DiskSpeed) -> float:
    return max(speed.read_mean_s or 0.0, speed.write_mean_s or 0.0)


def _speed(speed: DiskSpeed, places: Mapping[int, str], top: float) -> str:
    bars = "".join(
        bar([Share(kind, mean_s)], top, f"Disk {speed.disk}: {_milliseconds(mean_s)} to {verb} a chunk", kind="thin")
        for kind, verb, mean_s in (("blue", "read", speed.read_mean_s), ("green", "write", speed.write_mean_s))
        if mean_s is not None
    )
    numbers = " · ".join(
        f'{_milliseconds(mean_s)} <span class="unit">{verb}</span>'
        for verb, mean_s in (("read", speed.read_mean_s), ("write", speed.write_mean_s))
        if mean_s is not None
    )
    return _row(f'<span class="unit">{speed.disk}</span> {text(places.get(speed.disk, ""))}', numbers, bars, "")


def _milliseconds(duration_s: float) -> str:
    if duration_s >= 9.995:
        return format_duration(duration_s)
    return f"{1000 * duration_s:.0f} ms" if duration_s >= 0.00995 else f"{1000 * duration_s:.1f} ms"


def _sessions(document: Document) -> str:
    sessions = sorted(document.volume.sessions, key=lambda session: (-session.age_s, session.host))
    if not sessions:
        return _card("Processes with the volume open", "", '<p class="soft-text small">Nobody but this page.</p>')
    rows = "".join(
        f'<tr><td class="name"><span class="dot {_pulse(session.age_s, alive=session.alive)}">{text(session.purpose)}</span></td>'
        f'<td>{text(session.host)} <span class="unit">{session.process}</span></td>'
        f'<td class="n">{format_duration(max(0.0, session.age_s))} <span class="unit">ago</span></td></tr>'
        for session in sessions[:SESSIONS_SHOWN]
    )
    head = '<tr><th scope="col">For</th><th scope="col">Host, process</th><th scope="col" class="n">Heartbeat</th></tr>'
    return _card("Processes with the volume open", f"{len(sessions)}", _table(head, rows))


def _pulse(age_s: float, *, alive: bool) -> str:
    return "bad" if not alive else "watch" if age_s > HEARTBEAT_LATE_S else ""


def _mounts(mounts: Sequence[MountLook]) -> str:
    if not mounts:
        return '<div class="head"><h3>Mounts of this host</h3></div><p class="soft-text small">Nothing is mounted on this host.</p>'
    titles = ("Ops/s", "Stored/s", "Fetched/s", "Opens hit", "Waits/s", "Staged", "CPU", "Memory")
    head = (
        '<tr><th scope="col">Where</th>'
        + "".join(f'<th scope="col" class="n">{title}</th>' for title in titles)
        + "</tr>"
    )
    rows = "".join(f"<tr>{_mount(mount)}</tr>" for mount in mounts)
    title = '<div class="head"><h3>Mounts of this host</h3><span class="small soft-text">last minute</span></div>'
    return title + _table(head, rows)


def _mount(mount: MountLook) -> str:
    name = f'<td class="name"><span class="dot{"" if mount.answers else " bad"}">{text(mount.mount_point)}</span>'
    if not mount.answers:
        return f'{name}</td><td colspan="8" class="away">its daemon does not answer</td>'
    chip = '<span class="chip watch">SSD full</span>' if mount.ssd_full else ""
    return f"{name}{chip}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in _cells(mount))


def _cells(mount: MountLook) -> Iterator[str]:
    yield _rate(mount.operations_per_s)
    yield NOT_KNOWN if mount.stored_bytes_per_s is None else format_size(int(mount.stored_bytes_per_s))
    yield NOT_KNOWN if mount.filled_bytes_per_s is None else format_size(int(mount.filled_bytes_per_s))
    yield NOT_KNOWN if mount.hit_ratio is None else f"{mount.hit_ratio:.0%}"
    yield _rate(mount.room_waits_per_s)
    yield format_size(mount.staged_bytes)
    yield NOT_KNOWN if mount.cpu_ratio is None else f"{mount.cpu_ratio:.0%}"
    yield format_size(mount.resident_bytes)


def _rate(value: float | None) -> str:
    if value is None:
        return NOT_KNOWN
    return f"{value:,.0f}" if value >= 9.95 or value == 0 else f"{value:.1f}"


# ---- building blocks -------------------------------------------------------------------------------------------------


def _card(title: str, about: str, body: str) -> str:
    aside = f'<span class="small soft-text">{text(about)}</span>' if about else ""
    return f'<div class="card"><div class="head"><h3>{title}</h3>{aside}</div>{body}</div>'


def _row(name: str, value: str, picture: str, detail: str) -> str:
    """`name` and `value` are HTML, `detail` is text."""
    below = f'<span class="small soft-text">{text(detail)}</span>' if detail else ""
    return f'<li class="row"><div class="line"><span>{name}</span><span>{value}</span></div>{picture}{below}</li>'


def _table(head: str, rows: str | Iterable[str]) -> str:
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
