"""Builds torch's fused optimizers, with learning rate and weight decay for each parameter group.

    optimizer: {name: adamw, lr: 1e-4, weight_decay: 0.01, groups: [
      {match: ["*norm*", "*bias_table"], weight_decay: 0},
      {match: "decoder.*", lr_mult: 10}]}

`match` holds glob patterns of parameter names. A parameter belongs to the first group with a
matching pattern. A parameter that no pattern matches is trained with the values outside `groups`.
In every iteration a group's learning rate is the schedule's times the group's `lr_mult`. Not
covered: other values per group, and DeepSpeed's own optimizers.
"""

import inspect
import math
from fnmatch import fnmatchcase

import torch
from torch import nn

from tiekd.config.schema import check_keys, check_value, fits
from tiekd.errors import RecipeError

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
# The arguments of torch's optimizers that a recipe may give, with their types. Arguments that only
# affect how a step is computed (fused, foreach, ...) aren't among them: build_optimizer sets these.
ARGUMENTS = {
    "lr": float,
    "betas": tuple[float, float],
    "eps": float,
    "weight_decay": float,
    "momentum": float,
    "dampening": float,
    "nesterov": bool,
    "amsgrad": bool,
    "maximize": bool,
    "decoupled_weight_decay": bool,
}
GROUP_KEYS = {"match": str | list[str], "lr_mult": float, "weight_decay": float}


def build_optimizer(
    node: dict, network: nn.Module, batch_size: int, lr_scaling: str
) -> torch.optim.Optimizer:
    """Builds the torch optimizer that a recipe's `optimizer` section describes, with `fused=True`.

    Args:
        node: The section, whose `lr` is meant for the global batch size `lr_batch_size`.
        network: The student, whose trainable parameters the optimizer gets.
        batch_size: Images per iteration, summed over all ranks.
        lr_scaling: How the learning rate grows with batch_size / lr_batch_size: none, linear or
            sqrt.

    Returns:
        The optimizer. Its `defaults["lr"]` is the learning rate, scaled for `batch_size`, of a
        group without `lr_mult`.

    Raises:
        RecipeError: A name, argument or group is unknown or wrong.
    """
    name, arguments = checked(node, batch_size, lr_scaling)
    groups = node.get("groups", [])
    if "betas" in arguments:
        arguments["betas"] = tuple(map(float, arguments["betas"]))
    # Sort the trainable parameters into groups; frozen ones are not given to the optimizer.
    parameters = {key: p for key, p in network.named_parameters() if p.requires_grad}
    by_group = parameter_groups(groups, parameters, arguments["lr"])
    try:
        return OPTIMIZERS[name](by_group, fused=True, **arguments)
    # Torch raises one of these errors if it refuses the combination of arguments.
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"optimizer ({name}): got {arguments}; torch says: {' '.join(str(error).split())}"
        ) from None


def checked(node: dict, batch_size: int, lr_scaling: str) -> tuple[str, dict]:
    """Checks a recipe's `optimizer` section, except for its groups, without building the optimizer.

    Args:
        node: The section.
        batch_size: Images per iteration, summed over all ranks.
        lr_scaling: How the learning rate grows with the batch size: none, linear or sqrt.

    Returns:
        The optimizer's name; and its arguments, with the learning rate scaled for `batch_size`.

    Raises:
        RecipeError: A name or argument is unknown or wrong.
    """
    check_value(node, dict, "optimizer")
    arguments = {key: value for key, value in node.items() if key not in ("name", "groups")}
    name = node.get("name")
    if name not in list(OPTIMIZERS):
        raise RecipeError(f"optimizer.name: got {name!r}; allowed: {', '.join(OPTIMIZERS)}")
    # Scale the learning rate for the global batch size.
    factor = lr_factor(batch_size, arguments.pop("lr_batch_size", None), lr_scaling)
    _check_arguments(name, arguments)
    arguments["lr"] *= factor
    return name, arguments


def lr_factor(batch_size: int, lr_batch_size: int | None, lr_scaling: str) -> float:
    """Returns the factor that scales the learning rate to the global batch size.

    Args:
        batch_size: Images per iteration, summed over all ranks.
        lr_batch_size: The global batch size that the learning rate is meant for; None if the recipe
            doesn't give it, which is allowed only if `lr_scaling` is none.
        lr_scaling: With "none" the factor is 1, with "linear" batch_size / lr_batch_size, with
            "sqrt" the square root of that.

    Raises:
        RecipeError: `lr_scaling` is unknown, or needs `lr_batch_size`.
    """
    powers = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}
    if lr_scaling not in powers:
        raise RecipeError(f"train.lr_scaling: got {lr_scaling!r}; allowed: {', '.join(powers)}")
    if lr_batch_size is None and lr_scaling != "none":
        raise RecipeError(
            f"train.lr_scaling: got {lr_scaling}, but not which global batch the lr is meant for; "
            "give it as optimizer.lr_batch_size, for example 16, or write lr_scaling: none"
        )
    if lr_batch_size is None:
        return 1.0
    if not fits(lr_batch_size, int) or lr_batch_size < 1:
        raise RecipeError(
            f"optimizer.lr_batch_size: got {lr_batch_size!r}; it must be a whole number from 1"
        )
    return (batch_size / lr_batch_size) ** powers[lr_scaling]


def parameter_groups(
    nodes: list[dict], parameters: dict[str, nn.Parameter], lr: float
) -> list[dict]:
    """Sorts parameters into groups by their names.

    Args:
        nodes: The recipe's `groups`, each with glob patterns `match` and optionally `lr_mult` and
            `weight_decay`.
        parameters: The trainable parameters by name.
        lr: The learning rate of a group without `lr_mult`.

    Returns:
        Groups as a torch optimizer takes them: dicts with `params`, `lr_mult`, and, if they differ
        from the optimizer's, `lr` and `weight_decay`. The first group has the parameters that no
        pattern matches, if there are any. It is followed by one group for each of `nodes`, in their
        order.

    Raises:
        RecipeError: A pattern matches no parameter; or earlier groups already contain all
            parameters that a group's patterns match.
    """
    check_value(nodes, list[dict], "optimizer.groups")
    # Take the groups in order, so that a parameter belongs to the first group with a pattern that
    # matches its name.
    left, groups = dict(parameters), []
    for i, node in enumerate(nodes):
        where = f"optimizer.groups[{i}]"
        _check_group(node, where)
        patterns = [node["match"]] if isinstance(node["match"], str) else node["match"]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise RecipeError(
                    f"{where}.match: no parameter fits {pattern!r}; patterns are for whole names "
                    f"such as {next(iter(parameters))}, for example 'decoder.*'"
                )
        taken = [name for name in left if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not taken:
            raise RecipeError(
                f"{where}.match: earlier groups have all that fits {node['match']!r}; move it up"
            )
        lr_mult = node.get("lr_mult", 1.0)
        group = {
            "params": [left.pop(name) for name in taken],
            "lr": lr * lr_mult,
            "lr_mult": lr_mult,
        }
        groups.append(
            group | ({"weight_decay": node["weight_decay"]} if "weight_decay" in node else {})
        )
    # Put the parameters that no pattern matches into a group with the learning rate and weight
    # decay of the `optimizer` section.
    rest = [{"params": list(left.values()), "lr_mult": 1.0}] if left else []
    return rest + groups


def _check_arguments(name: str, arguments: dict) -> None:
    """Raises RecipeError for an optimizer argument that is unknown or of a wrong type or range.

    Args:
        name: The optimizer's name, a key of OPTIMIZERS.
        arguments: The optimizer's arguments that the recipe gives, by name.
    """
    known = [key for key in inspect.signature(OPTIMIZERS[name]).parameters if key in ARGUMENTS]
    check_keys(arguments, known, f"optimizer ({name})")
    for key, value in ({"lr": None} | arguments).items():
        check_value(value, ARGUMENTS[key], f"optimizer.{key}")
    # Check the ranges here, since torch's own errors don't name the recipe's key.
    ranges = {
        "lr": (lambda lr: 0 < lr < math.inf, "a number above 0"),
        "betas": (
            lambda betas: all(0 <= beta < 1 for beta in betas),
            "two numbers from 0, under 1",
        ),
        "eps": (lambda eps: 0 <= eps < math.inf, "0 or more"),
        "weight_decay": (lambda decay: 0 <= decay < math.inf, "0 or more"),
        "momentum": (lambda momentum: 0 <= momentum < 1, "a number from 0, under 1"),
        "dampening": (math.isfinite, "finite"),
    }
    for key in ranges.keys() & arguments.keys():
        allowed, rule = ranges[key]
        if not allowed(arguments[key]):
            raise RecipeError(f"optimizer.{key}: got {arguments[key]!r}; it must be {rule}")


def _check_group(node: dict, where: str) -> None:
    check_keys(node, GROUP_KEYS, where)
    for key, value in node.items():
        check_value(value, GROUP_KEYS[key], f"{where}.{key}")
    if not node.get("match"):
        raise RecipeError(
            f"{where}: needs match, a glob pattern of parameter names or a list of them"
        )
    if not 0 < node.get("lr_mult", 1.0) < math.inf:
        raise RecipeError(f"{where}.lr_mult: got {node['lr_mult']}; it must be a factor above 0")
    if not 0 <= node.get("weight_decay", 0.0) < math.inf:
        raise RecipeError(f"{where}.weight_decay: got {node['weight_decay']}; it must be 0 or more")
