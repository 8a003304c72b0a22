"""Folds batch norms into the convolutions before them, so that a half-precision graph is float16.

A batch norm keeps its statistics in float32, so a float16 graph would mix the two dtypes at every
norm, which not every runtime supports. In eval mode a batch norm is a scale and an offset per
channel. These are folded, in float32, into weight and bias of the preceding convolution. Norms that
follow another operator (ELU, a sum, a concatenation) aren't folded. Float32 exports don't need
this, since ONNX's optimiser folds norms itself.
"""

from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.ops import aten


def fold_norms(module: nn.Module, program: ExportedProgram) -> int:
    """Folds batch norms into the convolutions before them, in place.

    A norm is folded if nothing else uses the convolution's output, and is replaced by an Identity.

    Args:
        module: The module to change, in eval mode.
        program: The graph of `module`, traced in eval mode.

    Returns:
        The number of folded norms.
    """
    names = program.graph_signature.inputs_to_parameters
    folded = 0
    for node in program.graph.nodes:
        if node.target is not aten.batch_norm.default:
            continue
        conv_node = _only_source(node)
        if conv_node is None or conv_node.target is not aten.conv2d.default:
            continue
        # Skip weights that are computed from other values or used several times, since folding
        # would change them for all users.
        weights = _through_casts(conv_node.args[1]), _through_casts(node.args[1])
        if any(weight.name not in names or len(_users(weight)) > 1 for weight in weights):
            continue  # computed from other values, or used by another node, too
        conv_name, norm_name = (names[weight.name].rpartition(".")[0] for weight in weights)
        conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        parent, _, last = norm_name.rpartition(".")
        setattr(module.get_submodule(parent), last, nn.Identity())
        folded += 1
    return folded


def _only_source(norm: Node) -> Node | None:
    """Finds the graph node whose output, possibly after casts, is a batch norm's input.

    Args:
        norm: The batch norm's node.

    Returns:
        The node; None if other nodes, too, use its output or that of a cast.
    """
    source = norm.args[0]
    while len(_users(source)) == 1 and source.target is aten.to.dtype:
        source = source.args[0]
    return source if len(_users(source)) == 1 else None


def _through_casts(node: Node) -> Node:
    while node.target is aten.to.dtype:
        node = node.args[0]
    return node


def _users(node: Node) -> list[Node]:
    """Returns a list of the graph nodes that use the output of `node`.

    The assertions about shapes and dtypes that tracing adds to the graph are left out.

    Args:
        node: A node of a traced graph.
    """
    return [user for user in node.users if user.target is not aten._assert_tensor_metadata.default]
