"""XML as a tree whose elements know their line, for error messages. Entities are rejected."""

from __future__ import annotations

from collections.abc import Iterator
from xml.parsers import expat

from attrs import define, field
from sage_infer.errors import ToolOutputError
from sage_infer_hal.detection import Line, ToolText

__all__ = ["Element", "line_error", "read_xml"]


@define(eq=False)
class Element:
    """One element; ``text`` is its stripped text before the first child."""

    tag: str
    attributes: dict[str, str]
    line: int
    children: list[Element] = field(factory=list)
    text: str = ""

    def all(self, tag: str) -> list[Element]:
        """Its children with this name."""
        return [child for child in self.children if child.tag == tag]

    def at(self, path: str) -> Element | None:
        """The first element at a path such as ``pci/pci_bus_id``, else None."""
        element: Element | None = self
        for tag in path.split("/"):
            element = next(iter(element.all(tag)), None) if element is not None else None
        return element

    def walk(self) -> Iterator[Element]:
        """All its descendants, in document order."""
        for child in self.children:
            yield child
            yield from child.walk()


def read_xml(text: ToolText, root: str) -> Element:
    """The document in ``text``; terminal output before its first ``<`` is skipped.

    Raises:
        ToolOutputError: it is malformed, truncated, or has another root element.
    """
    numbered = {line.number: line.text for line in text.lines}
    last = text.lines[-1].number if text.lines else 0
    lines = [numbered.get(number, "") for number in range(1, last + 1)]
    begin = next((number for number, line in enumerate(lines) if "<" in line), 0)
    lines[:begin] = [""] * begin
    document = "\n".join(lines)
    stripped = document.lstrip()
    skipped = document.count("\n", 0, len(document) - len(stripped))  # a declaration must be the very first

    top = Element("", {}, 0)
    stack = [top]

    def line_of(number: int) -> Line:
        number = min(number + skipped, max(last, 1))
        return Line(number, numbered.get(number, ""))

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes, parser.CurrentLineNumber + skipped)
        stack[-1].children.append(element)
        stack.append(element)

    def end(tag: str) -> None:
        element = stack.pop()
        element.text = element.text.strip()

    def characters(data: str) -> None:
        if not stack[-1].children:
            stack[-1].text += data

    def entity(name: str, *_: object) -> None:
        raise text.error(line_of(parser.CurrentLineNumber), "XML without entities of its own")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = characters, entity
    try:
        parser.Parse(stripped.encode("utf-8", errors="replace"), True)
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        raise text.error(line_of(error.lineno), f"well-formed XML to the end ({what})") from error
    found = top.children[0]
    if found.tag != root:
        raise text.error(line_of(found.line - skipped), f"an element {root}")
    return found


def line_error(text: ToolText, element: Element, expected: str) -> ToolOutputError:
    """The error for an unexpected element."""
    shown = f"<{element.tag}>{element.text}</{element.tag}>"
    line = next((line for line in text.lines if line.number == element.line), Line(element.line, shown))
    return text.error(line, expected)
