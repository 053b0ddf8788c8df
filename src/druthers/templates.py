"""Chat templates as fixed text around the contents, where a template provably writes nothing else.

A template is a program, and running it for every conversation costs more than its token ids do. Here it is run once for
each sequence of roles, with stand-ins for the contents that can be written out, stripped and added to other text, and
nothing else: a program that looks into one, counts it or compares it ends the attempt, and so does one that puts text
together in a way that would not be seen. A run that comes to its end therefore writes the same text around any
contents. The tokenizer's own rendering of a probe must agree; where anything fails, every conversation is rendered.
"""

from __future__ import annotations

import functools
import itertools
import json
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from druthers.records import Message
from druthers.tokens import Tokenizer, render

OPEN, SHUT = "\ue000", "\ue001"
MARK = re.compile(f"{OPEN}([0-9]+)(s?){SHUT}")
UNSEEN = (
    nodes.Concat,
    nodes.AssignBlock,
    nodes.Macro,
    nodes.CallBlock,
    nodes.FilterBlock,
    nodes.Block,
    nodes.Extends,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.ScopedEvalContextModifier,
)
"""Parts of a program that make plain text of what is written inside them, so that a stand-in would be lost sight of."""
FILTERS = "trim string default d length count first last list map selectattr rejectattr upper lower replace".split()
KINDS = {"defined": True, "undefined": False, "none": False, "string": True, "mapping": False, "iterable": True}
KINDS |= {"sequence": True, "number": False, "integer": False, "float": False, "boolean": False, "callable": False}
"""What the tests say of any text whatever it holds."""
TURNS = 12
"""Turns of the user up to which a conversation is learned beforehand for other processes."""


class Looked(Exception):
    """A template did more with a content than write it."""


class Content:
    """Stands for a content: `text` is a mark, perhaps with other text around it."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: str, *, pure: bool = True) -> None:
        self.text, self.pure = text, pure

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        raise Looked

    def __add__(self, other: object) -> Content:
        return Content(self.text + added(other), pure=False)

    def __radd__(self, other: object) -> Content:
        return Content(added(other) + self.text, pure=False)

    def __bool__(self) -> bool:
        return True  # a frame is used only for contents that are not blank

    def __eq__(self, other: object) -> bool:
        if other is None:
            return False
        raise Looked

    def strip(self) -> Content:
        """The content without white space around it; only of a content alone, so that what goes is known."""
        if not self.pure:
            raise Looked
        return Content(self.text.replace(f"s{SHUT}", SHUT).replace(SHUT, f"s{SHUT}"))


def added(other: object) -> str:
    """What a template may add to a content."""
    if isinstance(other, str | Content):
        return str(other)
    raise Looked


class Watched(ImmutableSandboxedEnvironment):
    """An environment that lets a template write contents and do nothing else with them."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Only `+`, which a stand-in answers itself, and no formatting."""
        if operator != "+":
            watched(left, right)
        if operator == "%" and isinstance(left, str):
            raise Looked
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Only `strip`."""
        if isinstance(obj, Content) and attribute == "strip":
            return obj.strip
        watched(obj, attribute)
        if isinstance(obj, str) and attribute.startswith("format"):
            raise Looked
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Nothing of a content."""
        watched(obj, argument)
        return super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Whatever takes no content."""
        watched(*args, *kwargs.values())
        return super().call(context, obj, *args, **kwargs)


class Generation(Extension):
    """`{% generation %}` marks what a model says; here its body stands for itself."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def watched(*values: object) -> None:
    """Raise Looked where a content is among the values."""
    if any(isinstance(value, Content) for value in values):
        raise Looked


def watched_filter(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses contents, but for the three whose outcome is known."""

    @functools.wraps(plain)
    def apply(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else None
        if isinstance(first, Content) and len(args) == 1 and not kwargs and name in ("trim", "string"):
            return first.strip() if name == "trim" else first
        watched(*args, *kwargs.values())
        return plain(*args, **kwargs)

    return apply


def watched_test(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A test that says of a content what it says of any text, or refuses."""

    @functools.wraps(plain)
    def apply(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], Content) and name in KINDS:
            return KINDS[name]
        watched(*args, *kwargs.values())
        return plain(*args, **kwargs)

    return apply


def tojson(value: object, *, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """The filter, with what templates mostly ask of it; it cannot write a content."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def refuse(message: str) -> None:
    """`raise_exception` of templates."""
    raise TemplateError(message)


def compiled(template: object) -> Template | None:
    """The template under watch, or None where it cannot be watched."""
    if not isinstance(template, str) or OPEN in template or SHUT in template:
        return None
    world = Watched(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    world.filters = {name: watched_filter(name, world.filters[name]) for name in FILTERS}
    world.filters["tojson"] = watched_filter("tojson", tojson)
    world.tests = {name: watched_test(name, cast(Callable[..., Any], test)) for name, test in world.tests.items()}
    world.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        tree = world.parse(template)
        return None if any(True for _ in tree.find_all(UNSEEN)) else world.from_string(tree)
    except TemplateError:
        return None


@dataclass(frozen=True, slots=True)
class Frame:
    """The text of a template for one sequence of roles: fixed parts, and between them contents, some stripped."""

    fixed: tuple[str, ...]
    slots: tuple[tuple[int, bool], ...]

    def fill(self, contents: Sequence[str]) -> str:
        """The text around these contents.

        >>> Frame(("<user>", "<end>"), ((0, True),)).fill([" Hi "])
        '<user>Hi<end>'
        """
        text = [self.fixed[0]]
        for (i, stripped), behind in zip(self.slots, self.fixed[1:], strict=True):
            text += (contents[i].strip() if stripped else contents[i], behind)
        return "".join(text)


class Lazy:
    """A tokenizer that is unpickled only when it is asked for: other processes can mostly do without."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.held: Tokenizer | bytes = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        if isinstance(self.held, bytes):
            self.held = pickle.loads(self.held)
        assert not isinstance(self.held, bytes)
        return self.held

    def __getstate__(self) -> dict[str, bytes]:
        return {"held": self.held if isinstance(self.held, bytes) else pickle.dumps(self.held)}


class Writer:
    """Conversations to text, as `tokens.render` writes them: by a frame where there is one, else by the template."""

    def __init__(self, lazy: Lazy) -> None:
        self.lazy = lazy
        self.frames: dict[tuple[tuple[str, ...], bool], Frame | None] = {}
        self.template: Template | None = None
        self.watching = compiled(lazy.tokenizer.chat_template) is not None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"template": None}

    def write(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, *, ask: bool, bare: bool) -> str:
        """The text; raises InputError as `render` does. `bare` says that all messages are `plain`."""
        if bare and tools is None and self.watching:
            key = (tuple([message.role for message in messages]), ask)
            if key not in self.frames:
                self.frames[key] = self.learned(key[0], ask=key[1])
            frame = self.frames[key]
            if frame is not None:
                return frame.fill([message.content for message in messages])
        return render(messages, self.lazy.tokenizer, tools=tools, ask=ask)

    def learned(self, roles: tuple[str, ...], *, ask: bool) -> Frame | None:
        """The frame of a sequence of roles, or None where the template looks into contents or refuses the roles."""
        tokenizer = self.lazy.tokenizer
        if self.template is None:
            self.template = compiled(tokenizer.chat_template)
        assert self.template is not None
        messages = [{"role": role, "content": Content(f"{OPEN}{i}{SHUT}")} for i, role in enumerate(roles)]
        given = {"tools": None, "documents": None, "add_generation_prompt": ask, **tokenizer.special_tokens_map}
        probe = [Message(role=role, content=f" \t(content {i}) \n") for i, role in enumerate(roles)]  # type: ignore[arg-type]
        try:
            text = self.template.render(messages=messages, **given)
            own = render(probe, tokenizer, tools=None, ask=ask)
        except (Looked, TemplateError, TypeError, ValueError, LookupError):
            return None
        fixed, numbers, stripped = MARK.split(text)[::3], MARK.split(text)[1::3], MARK.split(text)[2::3]
        frame = Frame(tuple(fixed), tuple((int(i), bool(s)) for i, s in zip(numbers, stripped, strict=True)))
        return frame if frame.fill([message.content for message in probe]) == own else None

    def learn_usual(self) -> None:
        """Learn conversations of up to `TURNS` turns of the user, with and without a system turn, and one answer."""
        for opening, count in itertools.product(((), ("system",)), range(1, TURNS + 1)):
            roles = (*opening, *("user", "assistant") * count)
            for key in ((roles[:-1], True), (roles, False)):
                if self.watching and key not in self.frames:
                    self.frames[key] = self.learned(key[0], ask=key[1])


def plain(message: Message) -> bool:
    """Whether a message has nothing but a role and a content that is not blank."""
    bare = message.tool_calls is None and message.name is None and message.tool_call_id is None
    return bare and message.content != "" and not message.content.isspace()
