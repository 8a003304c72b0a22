"""Reads and writes the YAML of recipes: the core schema of YAML 1.2.

In the core schema all plain values except numbers, true, false and null are text. (PyYAML follows
YAML 1.1, in which 1e-3 is text, yes and on are true, 2024-01-01 is a date, 1:30 is ninety and 010
is eight.) Some YAML that PyYAML accepts is refused here:

- a key that occurs twice in a mapping, of which PyYAML keeps the last;
- {epochs:2}, which YAML reads as a key `epochs:2` without a value;
- tags outside the core schema;
- anchors that contain themselves or expand to a huge recipe.

When YAML is written, all text is quoted that either version of YAML would misread.
"""

import re

import yaml

_LARGEST = 1_000_000  # the largest number of values in a recipe after anchors are expanded
# For each type of the core schema: the pattern of its values, and the characters with which they
# can begin, by which PyYAML looks up patterns.
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
    """A PyYAML loader of the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict = {}
    yaml_constructors = {
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in _CONSTRUCTED
    }

    def construct_mapping(self, node, deep=False):
        """Builds a dict from a YAML mapping.

        Args:
            node: The parsed mapping, a yaml.MappingNode.
            deep: True to build nested values immediately, as PyYAML defines it.

        Raises:
            yaml.YAMLError: A key occurs twice, or there is no space after a key's colon.
        """
        seen = set()
        for key, value in node.value:
            # YAML reads {epochs:2} as a key `epochs:2` with an empty value, which begins exactly
            # where the key ends. Refuse this.
            in_one = value.value == "" and value.start_mark.index == key.end_mark.index
            if in_one and re.search(r"[:\s]", str(key.value)):
                raise _refused(
                    f"{key.value!r:.80} has no value; write a space after the colon of a key",
                    key,
                )
            # `1` and `"1"` are different keys. The key `<<` may occur several times, since each
            # merges a mapping.
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else key
            if name in seen and key.tag != _TAG + "merge":
                raise _refused(f"the key {key.value!r:.80} is there twice", key)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def number(self, node):
        """Returns a YAML scalar as an integer: decimal (010 is ten), octal (0o17) or hex (0x1f)."""
        text = self.construct_scalar(node).lower()
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def fraction(self, node):
        """Returns a YAML scalar as a floating-point number, which may be infinite or NaN."""
        text = self.construct_scalar(node).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def truth(self, node):
        """Returns a YAML scalar as a boolean; any text other than true and false is an error."""
        text = self.construct_scalar(node)
        if not re.fullmatch(_CORE["bool"][0], text):
            raise _refused(f"{text!r:.80} is neither true nor false", node)
        return text.lower() == "true"


class _TextLoader(_Loader):
    """A PyYAML loader that reads every scalar as text."""

    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    """A PyYAML dumper that quotes text that YAML 1.1 or the core schema of 1.2 would misread."""


_Loader.add_constructor(_TAG + "int", _Loader.number)
_Loader.add_constructor(_TAG + "float", _Loader.fraction)
_Loader.add_constructor(_TAG + "bool", _Loader.truth)
for _name, (_pattern, _first) in _CORE.items():
    for _cls in (_Loader, _Dumper):
        _cls.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def load(text: str):
    """Parses the text of a recipe's YAML file.

    Args:
        text: The content of the file.

    Returns:
        The parsed value: nested dicts, lists and scalars. It is a dict if the file is a recipe.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: The text is not YAML, or not YAML that is
            allowed.
    """
    return _checked(yaml.load(text, Loader=_Loader))  # noqa: S506 - a SafeLoader


def value(text: str, of_texts: bool = False):
    """Parses one value from a command line to a dict, list, number, boolean or string.

    A number, true, false, a [list], a {mapping} and text in quotes are read as YAML; any other
    value is returned as text.

    Args:
        text: The value as typed.
        of_texts: True if the value is a list whose items are all text, even those that look like
            numbers.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: As `load` does.
    """
    # Parse the value as YAML if it begins with a bracket or a quote. Any other value is read as a
    # single scalar.
    stripped = text.strip()
    if stripped[:1] and stripped[0] in "[{\"'":
        loader = _TextLoader if of_texts else _Loader
        return _checked(yaml.load(stripped, Loader=loader))  # noqa: S506 - a SafeLoader
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, stripped, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, stripped)) if tag in _SCALARS else text


def dump(node, **layout) -> str:
    """Returns a node of a recipe as YAML text.

    `load` and other YAML readers read the text back to the same node. Keys keep their order.

    Args:
        node: A dict, list or scalar.
        layout: Keyword arguments of yaml.dump, such as `width`.
    """
    return yaml.dump(node, Dumper=_Dumper, sort_keys=False, **layout)


def _checked(node):
    """Returns a parsed node unchanged; refuses YAML anchors that are endless or expand too far.

    Args:
        node: The parsed dict, list or scalar. For each use of an anchor it contains the same
            object.

    Raises:
        ValueError: An anchor contains itself, or there are more than _LARGEST values after anchors
            are expanded.
    """
    sizes: dict[int, int | None] = {}

    def size(part) -> int:
        if not isinstance(part, dict | list):
            return 1
        # The size of each mapping or list is computed once, and is None during the computation. If
        # it is None here, the mapping or list contains itself.
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
