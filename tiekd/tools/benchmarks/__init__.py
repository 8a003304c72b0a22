"""The benchmarks of `bin/benchmark.py`: one module per benchmark, with a function `run`.

`run(args)` takes the parsed command line (`arguments.py` defines the options) and returns the
results as a dict, which is printed and can be written as JSON. Most benchmarks time tiekd's
implementation and a plain reference in turn, in one process (`measure.py`). In reports and code,
"ours" is tiekd's implementation.
"""

COMMANDS = {
    "head": "the DPM head's kernels against their plain definition",
    "step": "a whole training step against the plain head with eager modules",
    "loader": "reading and augmenting a training sample against decoding its files",
    "eval": "evaluation against one image at a time in numpy",
    "engine": "host time of the loop and its hooks, and the loop against a bare one on the same "
    "engine",
    "student": "parameters, multiplications, latency and memory of any recipe's network",
    "teacher": "a step with cached teacher maps against one with the teacher online",
    "layouts": "every choice of the table of layouts for this CPU's instruction set, row by row",
    "growth": "time and memory of a step against batch, crop, bins and ranks",
}
