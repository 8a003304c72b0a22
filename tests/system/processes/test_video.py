"""A damaged video ends; read in a process of its own, since it would hang."""

import re
import subprocess
import sys

from support.videos import encode


def test_video_damaged_terminates(tmp_path):
    """Decoding a damaged video doesn't hang and states after which frame the damage is.

    It would hang where each thread of the decoder had a frame.
    """
    encode(tmp_path / "v.mp4")
    content = bytearray((tmp_path / "v.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    (tmp_path / "v.mp4").write_bytes(content)
    code = "import sys\nfrom pathlib import Path\nfrom tiekd.inference.predict.video import Video\n"
    code += "video = Video(Path(sys.argv[1]))\ntry:\n    print(len(list(video.frames())))\n"
    code += "except ValueError as error:\n    print(error)\n"
    command = [sys.executable, "-c", code, tmp_path / "v.mp4"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert re.search(
        r"v\.mp4: damaged after \d+ frames \(.*\); depth of those is there", result.stdout
    ), result.stderr
