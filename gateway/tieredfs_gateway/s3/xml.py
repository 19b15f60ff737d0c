"""XML in and out: small documents of known shape.

Reading refuses document types and entities before expat sees a byte of them (`xml bombs`), and bounds depth and number
of elements; namespaces are dropped. Writing escapes, and says what XML 1.0 cannot (most control characters) as
character references, as S3 itself does; clients that ask for `encoding-type=url` get keys that any parser reads.
"""

from collections.abc import Iterable, Mapping
from typing import Final
from xml.parsers import expat

from tieredfs_gateway.s3.errors import S3Error

NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
DOCUMENT_BYTES_MAX: Final = 4 << 20
"""10,000 parts with a checksum each are 3 MiB."""
_TEXT_CHARS_MAX: Final = 16 * 1024
"""Of one element; a key has 1,024 bytes."""
_DEPTH_MAX: Final = 16
_ELEMENTS_MAX: Final = 100_000


class Element:
    """A name without its namespace, the text directly inside, and children in order."""

    __slots__ = ("children", "name", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.children: list[Element] = []

    def all(self, name: str) -> list["Element"]:
        return [child for child in self.children if child.name == name]

    def get(self, name: str) -> str | None:
        """The text of the first child of that name, without surrounding space."""
        for child in self.children:
            if child.name == name:
                return child.text.strip()
        return None

    def exact(self, name: str) -> str | None:
        """The text with its space: keys may begin or end with it."""
        for child in self.children:
            if child.name == name:
                return child.text
        return None

    def need(self, name: str) -> str:
        text = self.get(name)
        if text is None:
            raise S3Error("MalformedXML", f"{self.name} needs {name}.")
        return text


class _Builder:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._count = 0

    def start(self, name: str, _attributes: Mapping[str, str]) -> None:
        element = Element(name.rpartition(":")[2])
        self._count += 1
        if self._count > _ELEMENTS_MAX or len(self._open) >= _DEPTH_MAX:
            raise S3Error("MalformedXML", "Too many elements, or too deep.")
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, _name: str) -> None:
        self._open.pop()

    def text(self, data: str) -> None:
        if self._open:
            self._open[-1].text += data
            if len(self._open[-1].text) > _TEXT_CHARS_MAX:
                raise S3Error("MalformedXML", "An element with too much text.")

    def refuse(self, *_: object) -> None:
        raise S3Error("MalformedXML", "Document types and entities are not accepted.")


def parse(document: bytes, root: str) -> Element:
    """Raises S3Error MalformedXML."""
    if len(document) > DOCUMENT_BYTES_MAX:
        raise S3Error("MaxMessageLengthExceeded")
    builder = _Builder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.EntityDeclHandler = builder.refuse
    try:
        parser.Parse(document, True)
    except (
        expat.ExpatError,
        ValueError,
        LookupError,
    ) as error:  # the last two: an encoding that Python has no table for
        raise S3Error("MalformedXML") from error
    if builder.root is None or builder.root.name != root:
        raise S3Error("MalformedXML", f"The document must be a {root}.")
    return builder.root


# ---- writing ---------------------------------------------------------------------------------------------------------

_ESCAPES: Final = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;", ord("\r"): "&#13;"}
_ESCAPES.update({number: f"&#{number};" for number in range(32) if chr(number) not in "\t\n\r"})


Tree = str | int | bool | None | Mapping[str, "Tree"] | Iterable["Tree"]
"""A mapping is children; a list under a name is that name repeated; None is nothing."""


def text(value: str) -> str:
    """Escaped for an element's text."""
    return value.translate(_ESCAPES)


def _write(out: list[str], name: str, value: Tree) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, str | int):
        out.append(f"<{name}>{text(str(value))}</{name}>")
    elif isinstance(value, Mapping):
        out.append(f"<{name}>")
        for child, item in value.items():
            _write(out, child, item)
        out.append(f"</{name}>")
    else:
        for item in value:
            _write(out, name, item)


def document(
    root: str, children: Mapping[str, Tree], *, namespace: bool = True, rows: Iterable[tuple[str, Tree]] = ()
) -> bytes:
    """A whole document, as bytes of UTF-8. `rows` follow the children, in their order."""
    out = ['<?xml version="1.0" encoding="UTF-8"?>\n']
    out.append(f'<{root} xmlns="{NAMESPACE}">' if namespace else f"<{root}>")
    for name, value in (*children.items(), *rows):
        _write(out, name, value)
    out.append(f"</{root}>")
    return "".join(out).encode("utf-8", "replace")  # a lone surrogate: what came was no UTF-8


def rendered(root: Element) -> bytes:
    """A document that was read, written again."""
    out = ['<?xml version="1.0" encoding="UTF-8"?>\n']
    _render(out, root, f' xmlns="{NAMESPACE}"')
    return "".join(out).encode("utf-8", "replace")  # a lone surrogate: what came was no UTF-8


def _render(out: list[str], element: Element, attributes: str = "") -> None:
    content = "" if element.children else text(element.text)
    out.append(f"<{element.name}{attributes}>{content}")
    for child in element.children:
        _render(out, child)
    out.append(f"</{element.name}>")


def error_document(error: S3Error, resource: str, request_id: str) -> bytes:
    """What S3 answers with every failure."""
    fields = {"Code": error.code, "Message": error.message, **error.fields}
    return document("Error", {**fields, "Resource": resource, "RequestId": request_id}, namespace=False)
