"""Jinja templates from elsewhere, rendered as transformers does it, but with bounds: of steps, of size, of time.

A template comes with a model, from anyone. The immutable sandbox keeps it from reading and changing what is not its own, and
here it can neither loop nor grow without end.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import wraps
from threading import Lock
from typing import Any

from jinja2 import Environment, TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from pellucid.core.errors import TokenizerError

STEPS = 1_000_000  # iterations and calls; a hundred turns take a few hundred
SIZE = 10_000_000  # characters of a text, elements of a list
SECONDS = 10.0
BITS = 4096  # of a number
WIDTH = 100_000  # characters to fill up to: the sandbox's own bound of a range
PADDING = {"center", "expandtabs", "format", "format_map", "indent", "ljust", "rjust", "tojson", "wordwrap", "zfill"}
GENERATION = "generation_marks"
# What a template's expressions raise when it is given what it did not expect.
REFUSALS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Endless(TemplateError):
    """A template does more than any template needs."""


class Template:
    """A compiled template. Raises `TokenizerError` if `source` is not Jinja."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._environment = BoundedEnvironment()
        self._lock = Lock()  # a rendering's bounds are kept in its environment
        try:
            tree = Watching().visit(self._environment.parse(source))
            self._template = self._environment.from_string(tree)
        except (TemplateSyntaxError, RecursionError, SyntaxError, ValueError) as error:
            reason = "it is nested too deep" if isinstance(error, RecursionError) else _sentence(error)
            line = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
            raise TokenizerError(
                f"the chat template is not valid Jinja ({line}{reason}); correct it, or remove it to use ChatML"
            ) from None

    def render(self, variables: Mapping[str, Any], *, marks: tuple[str, str] | None = None, place: str) -> str:
        """The text that it makes of the variables; `marks` are put around each `{% generation %}` block.

        Raises `TokenizerError`, with the place of what is rendered, if it raises, loops, grows or reads what it should not.
        """
        pieces, size = [], 0
        with self._lock:
            self._environment.begin()
            try:
                for piece in self._template.generate({**variables, GENERATION: marks}):
                    pieces.append(piece)
                    size += len(piece)
                    _bound(size, SIZE, f"writes more than {SIZE:,} characters")
            except Endless as error:
                raise TokenizerError(f"{place}: the chat template {error}; use another template") from None
            except RecursionError:
                raise TokenizerError(f"{place}: the chat template calls itself without end; use another template") from None
            except SecurityError as error:
                raise TokenizerError(
                    f"{place}: the chat template reaches for what it must not ({_sentence(error)}); do not use this template"
                ) from None
            except REFUSALS as error:
                raise TokenizerError(
                    f"{place}: the chat template refuses it ({_sentence(error)}); correct it, or use another template"
                ) from None
        return "".join(pieces)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates, which counts what a rendering does."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], optimized=False)
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        self.filters |= {"tojson": self._bounded("tojson", _to_json), "step": self.step, "measured": measured}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        del self.globals["lipsum"]
        self.begin()

    def begin(self) -> None:
        """Start counting for a rendering."""
        self.steps, self.deadline = 0, time.monotonic() + SECONDS

    def step(self, value: Any = None) -> Any:
        """Count one iteration or call."""
        self.steps += 1
        _bound(self.steps, STEPS, f"loops: it takes more than {STEPS:,} steps")
        _bound(time.monotonic(), self.deadline, f"takes more than {SECONDS:g} seconds")
        return value

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.step()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        _check_growth(getattr(method, "__name__", ""), (getattr(method, "__self__", None), *args), kwargs)
        return measured(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.step()
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(other, int):
                    size = one.bit_length() + other.bit_length() if isinstance(one, int) else 0
                    _bound(size, BITS, f"makes a number of more than {BITS:,} bits")
                    _bound(len(one) * other if isinstance(one, str | list | tuple) else 0, SIZE, LARGE)
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _bound(left.bit_length() * right, BITS, f"makes a number of more than {BITS:,} bits")
        if operator == "%" and isinstance(left, str):
            _check_growth("format", (left, *(right if isinstance(right, tuple) else (right,))), {})
        return measured(super().call_binop(context, operator, left, right))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.step()
            _check_growth(name, [value for value in args if not isinstance(value, Environment | Context)], kwargs)
            return measured(function(*args, **kwargs))

        return bounded


class Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: what the assistant says, between the marks that the rendering is given."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    @pass_context
    def mark(self, context: Context, caller: Callable[[], str]) -> str:
        before, after = context.parent.get(GENERATION) or ("", "")
        return f"{before}{caller()}{after}"


class Watching(NodeTransformer):
    """Adds a step to every iteration, and a measurement to what joins texts without being an operator."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(None), "step", node.lineno), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "measured", node.lineno)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = _filter(node.filter, "measured", node.lineno)
        return node


LARGE = f"makes something larger than {SIZE:,} characters"


def measured(value: Any) -> Any:
    """The value, if it is not too large."""
    if isinstance(value, str | list | tuple):
        _bound(len(value), SIZE, LARGE)
    return value


def _filter(node: nodes.Expr | None, name: str, line: int) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=line)


def _bound(value: float, limit: float, what: str) -> None:
    if value > limit:
        raise Endless(what)


def _check_growth(name: str, values: Any, named: Mapping[str, Any]) -> None:
    """Refuse what would make a huge text of small ones, before it does."""
    everything = [*values, *named.values()]
    if name in PADDING:
        numbers = [value for value in everything if isinstance(value, int)]
        formats = [re.findall(r"\d{6,18}", value) for value in everything[:1] if isinstance(value, str) and "format" in name]
        _bound(max([*numbers, *(int(digits) for found in formats for digits in found)], default=0), WIDTH, LARGE)
    if name == "replace" and len(everything) > 2 and all(isinstance(value, str) for value in everything[:3]):
        text, old, new = everything[:3]
        _bound(text.count(old) * len(new), SIZE, LARGE)
    if name == "join":
        texts = [value for value in everything if isinstance(value, str)]
        lists = [value for value in everything if isinstance(value, list | tuple | range)]
        _bound(max(map(len, texts), default=0) * max(map(len, lists), default=0), SIZE, LARGE)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is: Jinja's own filter escapes what HTML does not allow."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _sentence(error: BaseException) -> str:
    """What an exception says, short, in one line without a full stop."""
    return " ".join((str(error) or type(error).__name__).split())[:200].rstrip(".")
