"""The page, made from a `Document`. Pure: the same document is the same page, in a browser or in a file.

Parts that change with time are elements with an id and `data-part`; the script of a served page puts what is new into them.
A page in a file has no script, and says of when it is.
"""

import datetime
from typing import Final

from tieredfs_gateway.status import sections
from tieredfs_gateway.status.concerns import Level, level_of
from tieredfs_gateway.status.document import Document
from tieredfs_gateway.status.sections import text
from tieredfs_gateway.status.style import SCRIPT, STYLE, checksum

ICON: Final = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect x='1' y='2' width='14' height='3' rx='1' fill='%234a7fb5'/%3E"
    "%3Crect x='1' y='6.5' width='14' height='3' rx='1' fill='%236b9fd4'/%3E"
    "%3Crect x='1' y='11' width='14' height='3' rx='1' fill='%23b5cbe2'/%3E%3C/svg%3E"
)
SERVED_POLICY: Final = (
    f"default-src 'none'; style-src {checksum(STYLE)}; script-src {checksum(SCRIPT)}; img-src data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_FILE_POLICY: Final = f"default-src 'none'; style-src {checksum(STYLE)}; img-src data:"
_MARKS: Final = {Level.GOOD: "", Level.WATCH: "(!) ", Level.BAD: "(!!) "}


def served_page(document: Document) -> str:
    """With the script that refreshes it."""
    return _page(document, head="", script=f"<script>{SCRIPT}</script>", kind="live")


def page_in_a_file(document: Document) -> str:
    """Of one moment, needing nothing else."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_FILE_POLICY}">'
    return _page(document, head=policy, script="", kind="still")


def entrance(message: str) -> str:
    """What somebody without a token gets."""
    return (
        f'{_head("TieredFS", "")}<body><main><form method="post" action="/enter" class="card">'
        f'<h1>Status of a volume</h1><p class="soft-text">{text(message)}</p>'
        '<p><label for="token">Token, of <code>tieredfs status-token</code></label></p>'
        '<input id="token" name="token" type="password" autocomplete="off" autofocus required>'
        "<button>Show the status</button></form></main></body></html>\n"
    )


def _page(document: Document, *, head: str, script: str, kind: str) -> str:
    volume = document.volume
    title = f"{_MARKS[level_of(document.concerns)]}{volume.name} · TieredFS"
    waits = {"ssd": "fsync waits for the SSD", "store": "fsync waits for the store"}.get(volume.durability, "")
    parts = (
        ("verdict", "div", sections.verdict(document)),
        ("tiles", "div", sections.tiles(document)),
        ("where", "section", sections.where(document)),
        ("unsafe", "section", sections.unsafe(document)),
        ("slow", "section", sections.slow(document)),
    )
    body = "".join(f'<{tag} id="{name}" data-part>{content}</{tag}>' for name, tag, content in parts)
    return (
        f'{_head(title, head)}<body class="{kind}"><main><header><div><h1>{text(volume.name)}</h1>'
        f'<p class="small soft-text">{text(volume.code)} · {waits} · {text(volume.meta_url)}</p></div>'
        f'<p class="small soft-text clock" id="clock" data-part>{_moment(document.made_ns)}</p></header>'
        f'{body}<footer class="small soft-text"><p>Colours never say it alone: every picture has its numbers beside it. '
        f"The same as data: <code>/status.json</code>.</p></footer></main>{script}</body></html>\n"
    )


def _head(title: str, more: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{text(title)}</title>{more}'
        f'<link rel="icon" href="{ICON}"><style>{STYLE}</style></head>'
    )


def _moment(at_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(at_ns / 1e9, tz=datetime.UTC).astimezone()
    return f'<time datetime="{moment.isoformat()}">{moment:%Y-%m-%d %H:%M:%S %Z}</time>'
