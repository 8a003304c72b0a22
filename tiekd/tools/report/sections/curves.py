"""Makes the section with learning curves: losses, learning rate, validation metric, gradient."""

import math

from tiekd.evaluation.agreement import LABEL
from tiekd.tools.report.content import Content
from tiekd.tools.report.line_chart import Curve, chart
from tiekd.tools.report.markup import Markup, tag


def curves_section(content: Content) -> list[Markup]:
    """Returns the HTML of the section with the learning curves of the run's log.

    Args:
        content: The content of the report; without a log the result is an empty list.
    """
    run = content.records.run
    if run is None:
        return []
    drawn = []
    keys = run.keys()
    terms = [key for key in keys if key.startswith("decode.loss_")]
    named = [Curve("loss", *run.curve("loss", "iteration"))] if "loss" in keys else []
    named += [
        Curve(key.removeprefix("decode.loss_"), *run.curve(key, "iteration")) for key in terms
    ]
    if named:
        values = [y for curve in named for y in curve.ys if math.isfinite(y)] or [1.0]
        # Use a logarithmic axis if losses differ by more than a factor of 20. A loss of 0 or below
        # has no logarithm.
        is_wide = min(values) > 0 and max(values) > 20 * min(values)
        drawn.append(chart("Loss and its weighted terms", named, "iteration", log_y=is_wide))
    if "lr" in keys:
        curve = Curve("learning rate", *run.curve("lr", "iteration"))
        drawn.append(chart("Learning rate", [curve], "iteration", y_from=0.0))
    metric = content.recipe.evaluation.save_best
    # Of several data sets the log has the metric of each.
    of_sets = [f"{each.name}/{metric}" for each in content.recipe.data_sets if each.name]
    shown = {key for row in run.rows if row.mode == "val" for key in row.values}
    validated = [key for key in of_sets or [metric] if key in shown]
    if validated:
        named = [Curve(key, *run.curve(key, "iteration")) for key in validated]
        said = f" ({LABEL})" if any(True in run.agreement_flags(key) for key in validated) else ""
        drawn.append(chart(f"Validation: {metric}{said}", named, "iteration"))
    if "grad_norm" in keys:
        curve = Curve("norm of the gradient", *run.curve("grad_norm", "iteration"))
        drawn.append(chart("Norm of the gradient", [curve], "iteration"))
    return [tag("div", *drawn, class_="charts")] if drawn else []
