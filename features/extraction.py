"""One video in, its feature segments out: the pure function that every way of running extraction calls.

Letters: T frames of a segment, D feature length.
"""

from collections.abc import Iterator

import numpy as np

from features.backbones import Backbone
from features.schema import MAX_SEGMENT_FRAMES, Segment
from pipeline.decoding import open_video
from pipeline.sampling import Sampling


def extract_video(uri: str, *, backbone: Backbone, sampling: Sampling, decoder: str = "pyav") -> Iterator[Segment]:
    """Decode the sampled frames of one video and encode them; holds at most one segment in memory.

    Raises:
        VideoError: when the file cannot be opened, or one of its wanted frames cannot be decoded.
    """
    with open_video(uri, decoder=decoder) as video:
        wanted = sampling.select(video.pts_seconds)
        for number, start in enumerate(range(0, len(wanted), MAX_SEGMENT_FRAMES)):
            index = wanted[start : start + MAX_SEGMENT_FRAMES]
            blocks = [index[i : i + backbone.batch_size] for i in range(0, len(index), backbone.batch_size)]
            features = [backbone.encode(list(video.read_many(block.tolist()))) for block in blocks]
            yield Segment(number, index.astype(np.int32), video.pts_seconds[index], np.concatenate(features))
