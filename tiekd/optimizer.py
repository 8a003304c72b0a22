"""The optimizer of a recipe: torch's own, fused, with a learning rate and a weight decay per group of parameters.

    optimizer: {name: adamw, lr: 1e-4, weight_decay: 0.01, groups: [
      {match: ["*norm*", "*bias_table"], weight_decay: 0},
      {match: "decoder.*", lr_mult: 10}]}

`match` holds glob patterns of parameter names; a parameter belongs to the first group that has a pattern for it, and
what none matches keeps the optimizer's own values. The schedule sets a group's lr to its own times the group's
`lr_mult`. Left out: other values per group, and DeepSpeed's own optimizers.
"""

import inspect
import math
from fnmatch import fnmatchcase

import torch
from torch import nn

from tiekd.annotations import check_value
from tiekd.config import check_keys
from tiekd.errors import RecipeError

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
GROUP_KEYS = {"match": str | list[str], "lr_mult": float, "weight_decay": float}


def build_optimizer(node: dict, network: nn.Module, batch_size: int, lr_scaling: str) -> torch.optim.Optimizer:
    """The torch optimizer of `recipe["optimizer"]`, fused where torch has it.

    `lr_batch_size` is the global batch that `lr` is meant for; `lr_scaling` none, linear or sqrt says what another
    batch does to it. The optimizer's `defaults` hold lr and momentum without any group's factor. Raises RecipeError
    for unknown names and arguments, and for groups that can't be.
    """
    arguments = dict(node)
    name, lr_batch_size = arguments.pop("name", None), arguments.pop("lr_batch_size", batch_size)
    groups = arguments.pop("groups", [])
    if name not in OPTIMIZERS:
        raise RecipeError(f"optimizer.name: got {name!r}; allowed: {', '.join(OPTIMIZERS)}")
    optimizer_class = OPTIMIZERS[name]
    known = [p for p in inspect.signature(optimizer_class).parameters if p not in ("params", "fused", "foreach")]
    check_keys(arguments, known, f"optimizer ({name})")
    if not isinstance(arguments.get("lr"), (int, float)):
        raise RecipeError(f"optimizer.lr: got {arguments.get('lr')!r}; it must be a number")
    arguments["lr"] *= lr_factor(batch_size, lr_batch_size, lr_scaling)
    if "betas" in arguments:
        arguments["betas"] = tuple(arguments["betas"])
    parameters = {key: p for key, p in network.named_parameters() if p.requires_grad}
    return optimizer_class(parameter_groups(groups, parameters, arguments["lr"]), fused=True, **arguments)


def lr_factor(batch_size: int, lr_batch_size: int, lr_scaling: str) -> float:
    """What the learning rate is multiplied with when the global batch is not the one it was chosen for."""
    powers = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}
    if lr_scaling not in powers:
        raise RecipeError(f"train.lr_scaling: got {lr_scaling!r}; allowed: {', '.join(powers)}")
    return (batch_size / lr_batch_size) ** powers[lr_scaling]


def parameter_groups(nodes: list[dict], parameters: dict[str, nn.Parameter], lr: float) -> list[dict]:
    """torch's parameter groups: first what no pattern matches, then one per node of `optimizer.groups`.

    Raises RecipeError for a pattern without a parameter, and for a group whose parameters earlier groups have.
    """
    check_value(nodes, list[dict], "optimizer.groups")
    left, groups = dict(parameters), []
    for i, node in enumerate(nodes):
        where = f"optimizer.groups[{i}]"
        _check_group(node, where)
        patterns = [node["match"]] if isinstance(node["match"], str) else node["match"]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise RecipeError(
                    f"{where}.match: no parameter fits {pattern!r}; patterns are for whole names such as "
                    f"{next(iter(parameters))}, for example 'decoder.*'"
                )
        taken = [name for name in left if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not taken:
            raise RecipeError(f"{where}.match: earlier groups have all that fits {node['match']!r}; move it up")
        lr_mult = node.get("lr_mult", 1.0)
        group = {"params": [left.pop(name) for name in taken], "lr": lr * lr_mult, "lr_mult": lr_mult}
        groups.append(group | ({"weight_decay": node["weight_decay"]} if "weight_decay" in node else {}))
    rest = [{"params": list(left.values()), "lr_mult": 1.0}] if left else []
    return rest + groups


def _check_group(node: dict, where: str) -> None:
    check_keys(node, GROUP_KEYS, where)
    for key, value in node.items():
        check_value(value, GROUP_KEYS[key], f"{where}.{key}")
    if not node.get("match"):
        raise RecipeError(f"{where}: needs match, a glob pattern of parameter names or a list of them")
    if not 0 < node.get("lr_mult", 1.0) < math.inf:
        raise RecipeError(f"{where}.lr_mult: got {node['lr_mult']}; it must be a factor above 0")
    if not 0 <= node.get("weight_decay", 0.0) < math.inf:
        raise RecipeError(f"{where}.weight_decay: got {node['weight_decay']}; it must be 0 or more")
