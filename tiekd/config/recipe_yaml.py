"""The YAML of recipes: the core schema of YAML 1.2.

Nothing but a number, true, false and null is taken for anything else than text. PyYAML follows YAML
1.1, where 1e-3 is text, yes and on are true, 2024-01-01 is a date, 1:30 is ninety and 010 is eight.
Refused on top of what it refuses: a key that stands twice in a mapping, of which it takes the last;
{epochs:2}, which is a key without a value; tags that aren't the schema's own; and anchors that hold
themselves or swell. Written YAML quotes what either version would misread.
"""

import re

import yaml

_LARGEST = 1_000_000  # values, anchors followed
# By type: the text that is of it, and the characters that such text begins with, by which PyYAML
# looks rules up.
_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": ("<<", ["<"]),
}
_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name for name in ("bool", "int", "float")}
_CONSTRUCTED = {
    None,
    *(_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map")),
}


def _refused(why: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, why, node.start_mark)


class _Loader(yaml.SafeLoader):
    """The core schema."""

    yaml_implicit_resolvers: dict = {}
    yaml_constructors = {
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in _CONSTRUCTED
    }

    def construct_mapping(self, node, deep=False):
        """Refuses a key that is there already, and `key:value` without its blank."""
        seen = set()
        for key, value in node.value:
            # YAML takes {epochs:2} for a key `epochs:2` without a value, which begins where the key
            # ends.
            in_one = value.value == "" and value.start_mark.index == key.end_mark.index
            if in_one and re.search(r"[:\s]", str(key.value)):
                raise _refused(
                    f"{key.value!r:.80} has no value; behind the colon of a key belongs a blank",
                    key,
                )
            # `1` and `"1"` are two keys; `<<` may stand twice, as each merges another mapping.
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else key
            if name in seen and key.tag != _TAG + "merge":
                raise _refused(f"the key {key.value!r:.80} is there twice", key)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def number(self, node):
        """A whole number, which has no octal form but 0o17."""
        text = self.construct_scalar(node).lower()
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def fraction(self, node):
        """Any other number."""
        text = self.construct_scalar(node).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def truth(self, node):
        """True or False."""
        text = self.construct_scalar(node)
        if not re.fullmatch(_CORE["bool"][0], text):
            raise _refused(f"{text!r:.80} is neither true nor false", node)
        return text.lower() == "true"


class _TextLoader(_Loader):
    """Every scalar is text."""

    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what the core schema would take for something else, too."""


_Loader.add_constructor(_TAG + "int", _Loader.number)
_Loader.add_constructor(_TAG + "float", _Loader.fraction)
_Loader.add_constructor(_TAG + "bool", _Loader.truth)
for _name, (_pattern, _first) in _CORE.items():
    for _cls in (_Loader, _Dumper):
        _cls.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def load(text: str):
    """The content of a recipe's file.

    Raises yaml.YAMLError, ValueError and RecursionError for what is no YAML, or none that is
    allowed.
    """
    return _checked(yaml.load(text, Loader=_Loader))  # noqa: S506 - a SafeLoader


def value(text: str, of_texts: bool = False):
    """Reads one value as it is typed on a command line.

    YAML, if all of it is a number, true, false, a list, a mapping or quoted; otherwise text.

    Args:
        text: As typed.
        of_texts: True if a list's items are text, too.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: As `load` does.
    """
    # Text in brackets or quotes is parsed, all else is a scalar of the core schema or text.
    stripped = text.strip()
    if stripped[:1] and stripped[0] in "[{\"'":
        loader = _TextLoader if of_texts else _Loader
        return _checked(yaml.load(stripped, Loader=loader))  # noqa: S506 - a SafeLoader
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, stripped, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, stripped)) if tag in _SCALARS else text


def dump(node, **layout) -> str:
    """Returns YAML that `load`, and any other reader, reads back to the same.

    Keys stay in their order.
    """
    return yaml.dump(node, Dumper=_Dumper, sort_keys=False, **layout)


def _checked(node):
    """Returns the node.

    Raises ValueError where an anchor holds itself, or anchors of anchors make it more than anybody
    wrote.
    """
    sizes: dict[int, int | None] = {}

    def size(part) -> int:
        if not isinstance(part, dict | list):
            return 1
        # An anchor's object is counted once; None while it is being counted, which only its own
        # content can see.
        if id(part) not in sizes:
            sizes[id(part)] = None
            inside = part.values() if isinstance(part, dict) else part
            sizes[id(part)] = 1 + sum(map(size, inside))
        if sizes[id(part)] is None:
            raise ValueError("an anchor holds itself")
        return sizes[id(part)]

    if size(node) > _LARGEST:
        raise ValueError(f"its anchors make it larger than {_LARGEST} values")
    return node
