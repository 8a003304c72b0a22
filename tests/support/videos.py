"""Makes videos whose frames become brighter."""

import numpy as np


def encode(path, count=20, rate=10, last_s=0.1, **options):
    """Writes a video of 96x64 pixels.

    Args:
        path: the file to write.
        count: number of frames.
        rate: frames per second.
        last_s: duration of the last frame, seconds.
        options: options of the container.
    """
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        packets = []
        for index in range(count):
            level = np.full((64, 96, 3), min(index * 10, 255), np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(level, format="rgb24"))
        packets += stream.encode()
        packets[-1].duration = round(last_s / packets[-1].time_base)
        container.mux(packets)
