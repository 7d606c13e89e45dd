"""Writes the generated corpus in Charades' layout: H.264 videos `<id>.mp4`, train and test CSVs, a classes file.

`plan_corpus` decides what happens, `render_frame` draws it, `write_video` and `write_annotations` write files. The
labels are the times that the drawing follows.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from skipreel.pipeline.synthetic.drawing import render_frame
from skipreel.pipeline.synthetic.scenes import CLASS_NAMES, PROP_NAMES, Scene

CSV_COLUMNS = (
    "id",
    "subject",
    "scene",
    "quality",
    "relevance",
    "verified",
    "script",
    "objects",
    "descriptions",
    "actions",
    "length",
)
GOP_FRAMES = 48
B_FRAMES = 2
CRF = 26


def write_video(scene: Scene, path: Path) -> None:
    """Render and encode a scene as an MP4 file (H.264, yuv420p, B-frames); frame n is shown at n / fps seconds.

    The file gets its name when it is complete. One encoder thread makes the bytes depend only on the scene and the
    encoder's version.
    """
    import av

    unfinished = path.with_name(path.name + ".part")
    options = {"crf": str(CRF), "preset": "veryfast", "threads": "1", "g": str(GOP_FRAMES), "bf": str(B_FRAMES)}
    # With B-frames, x264's macroblock tree sometimes gave other bytes for the same frames.
    options["x264-params"] = "mbtree=0"
    try:
        with av.open(str(unfinished), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=scene.fps, options=options)
            stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
            for index in range(scene.num_frames):
                frame = av.VideoFrame.from_ndarray(render_frame(scene, index / scene.fps), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_annotations(scenes: Sequence[Scene], directory: Path) -> None:
    """Write `Charades_v1_train.csv`, `Charades_v1_test.csv` and `Charades_v1_classes.txt` into `directory`."""
    for split in ("train", "test"):
        text = io.StringIO()
        writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_csv_row(scene) for scene in scenes if scene.split == split)
        _write_text(directory / f"Charades_v1_{split}.csv", text.getvalue())
    classes = "".join(f"c{class_id:03d} {name}\n" for class_id, name in enumerate(CLASS_NAMES))
    _write_text(directory / "Charades_v1_classes.txt", classes)


def _csv_row(scene: Scene) -> dict[str, str]:
    happening = [CLASS_NAMES[action.class_id].lower() for action in scene.actions]
    room = "busy" if scene.busy else "quiet"
    return {
        "id": scene.video_id,
        "subject": "DEMO",
        "scene": "Living room",
        "quality": "4" if scene.busy else "7",
        "relevance": "7",
        "verified": "Yes",
        "script": f"A {room} room in which one sees {', then '.join(happening)}.",
        "objects": ";".join(PROP_NAMES[prop.kind] for prop in scene.props),
        "descriptions": f"A {room} room; {', '.join(happening)}.",
        "actions": ";".join(f"c{a.class_id:03d} {a.start_s:.2f} {a.end_s:.2f}" for a in scene.actions),
        "length": f"{scene.duration_s:.2f}",
    }


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
