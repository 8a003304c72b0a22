"""The launch record of a run that `deepspeed` started on two devices of one machine."""

RECORD = {
    "recipe": "r.yaml",
    "launcher": "deepspeed",
    "world_size": 2,
    "ranks_per_node": 2,
    "visible_devices": "0,1",
    "master_port": 29500,
    "folder": ".",
}
