"""The recipe node of a small network, and a function that writes a recipe with it."""

NETWORK = {
    "encoder": {"name": "mobilenet_v2", "width": 0.25},
    "decoder": {"name": "densedepth", "widths": [8, 8, 8, 8], "extra_ups": 1},
    "head": {"name": "sigmoid"},
    "min_depth": 0.001,
    "max_depth": 80.0,
}


def write_recipe(folder, network=NETWORK):
    import yaml

    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"network": network, "work_dir": str(folder / "work")}))
    return str(path)
