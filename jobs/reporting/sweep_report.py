"""The report of a sweep on one HTML page: the trade-off figure, its table, film strips, and timings."""

import csv
import io
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure

from skipreel.features.backbones.backbone import Backbone
from skipreel.features.feature_set.reader import FeatureSet
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.closed_loop.recognizer import predict, predict_dense
from skipreel.jobs.reporting.filmstrip import film_strip, png
from skipreel.jobs.reporting.page import MeasuredRow, SummaryRow, TableRow, render_report
from skipreel.jobs.reporting.tradeoff_figure import tradeoff_figure
from skipreel.jobs.reporting.video_strip import strip_of
from skipreel.jobs.runtime.mlflow_runs import log_to_finished_run
from skipreel.jobs.runtime.terminal import track
from skipreel.jobs.trained.backbone import load_backbone_of
from skipreel.jobs.trained.model import TrainedModel, load_model
from skipreel.jobs.training.record import SweepPoint, SweepRecord, load_record
from skipreel.jobs.training.tradeoff import mean_over_seeds, pareto_front
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError
from skipreel.pipeline.manifest import Manifest, VideoEntry, read_manifest

# Of the skip networks whose metric is this close to the dense one's, the report shows the one with the fewest updates.
CLOSE = 0.05


@dataclass(frozen=True, slots=True)
class Shown:
    """The skip network that the strips and the timings show."""

    point: SweepPoint
    model: TrainedModel
    backbone: Backbone


def write_report(folder: Path, *, num_strips: int, num_timed: int, backbone: str | None) -> None:
    """Write report.html, tradeoff.png, tradeoff.csv and the strips, and add them to the sweep's MLflow run.

    Args:
        folder: the sweep's folder.
        num_strips: test videos shown as film strips.
        num_timed: test videos labelled from their files, by the network shown and by a dense pass of it.
        backbone: name of the backbone; default: its name at the extraction.

    Raises:
        InputError: the sweep, its data, its networks or its MLflow run cannot be read.
        VideoError: a video cannot be decoded.
    """
    record = load_record(folder)
    manifest = read_manifest(record.manifest)
    available = FeatureSet(record.features).video_ids()  # a video that failed in the extraction would fail here too
    entries = [entry for entry in manifest.only(record.test_split).entries if entry.video_id in available]
    point = showcase(record.points)
    model = load_model(folder / point.checkpoint)
    shown = Shown(point, model, load_backbone_of(model, name=backbone))
    figure = png(_tradeoff(record))
    rows = _table_rows(record)
    strips = [_strip(entry, shown, manifest) for entry in _spread(entries, num_strips)]
    measured = _measure(_spread(entries, num_timed), shown)
    page = render_report(
        title=f"skipreel: {record.metric_name} against frames read",
        summary_rows=_summary(record, point, measured),
        table=rows,
        metric_name=record.metric_name,
        tradeoff_png=figure,
        strips=strips,
        facts={**record.facts, "machine": _machine()},
        measured=measured,
    )
    files = {"report.html": page.encode(), "tradeoff.png": figure, "tradeoff.csv": _csv(rows)}
    files |= {f"strip-{number}.png": png for number, (_, png) in enumerate(strips, 1)}
    for name, content in files.items():
        storage.write_atomic(str(folder / name), content)
    log_to_finished_run(record.mlflow_uri, record.run_id, [folder / name for name in files])


def showcase(points: tuple[SweepPoint, ...]) -> SweepPoint:
    """The skip network with the fewest updates among those close to the dense network's metric, else the best one.

    Raises:
        InputError: the sweep ended before it had a skip and a dense network.
    """
    for family in ("skip", "dense"):
        if all(point.settings.family != family for point in points):
            raise InputError(f"the sweep has no finished {family} network to report on: run skipreel sweep again")
    skip = [point for point in points if point.settings.family == "skip"]
    dense = max(point.metric for point in points if point.settings.family == "dense")
    close = [point for point in skip if point.metric >= dense - CLOSE]
    if close:
        return min(close, key=lambda point: point.cost.state_updates)
    return max(skip, key=lambda point: point.metric)


def _table_rows(record: SweepRecord) -> list[TableRow]:
    """One row per network by descending number of updates, with means per video."""
    points = sorted(record.points, key=lambda point: -point.cost.state_updates)
    means = [mean.point for mean in mean_over_seeds([point.tradeoff for point in points])]
    front = {(means[number].family, means[number].setting) for number in pareto_front(means)}
    return [
        {
            "name": point.tradeoff.name,
            "family": point.tradeoff.family,
            "setting": point.tradeoff.setting,
            "seed": point.tradeoff.seed,
            "metric": point.metric,
            "updates": point.tradeoff.updates,
            "update_share": point.tradeoff.update_share,
            "frames_wanted": point.cost.frames_wanted / point.num_videos,
            "on_front": (point.tradeoff.family, point.tradeoff.setting) in front,
        }
        for point in points
    ]


def _measure(entries: list[VideoEntry], shown: Shown) -> list[MeasuredRow]:
    """Label videos from their files, in turns by the network shown and by its dense pass: one row for each of the two.

    One thread, as on a busy cluster: otherwise a batch of frames would use cores that a single frame cannot use.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _take_turns(entries, shown)
    finally:
        torch.set_num_threads(threads)


def _take_turns(entries: list[VideoEntry], shown: Shown) -> list[MeasuredRow]:
    for look in (predict_dense, predict):  # the first calls include lazy initialisation
        look(entries[0].uri, model=shown.model, backbone=shown.backbone)
    runs: dict[str, list[Prediction]] = {"every frame": [], "skipping": []}
    for entry in track(entries, "labelling from video files", total=len(entries)):
        for name, look in (("every frame", predict_dense), ("skipping", predict)):
            runs[name].append(look(entry.uri, model=shown.model, backbone=shown.backbone))
    rows = [_measured(f"{shown.point.settings.model}, {name}", predictions) for name, predictions in runs.items()]
    rows[1]["speed_up"] = _total(rows[0]) / _total(rows[1])
    return rows


def _measured(name: str, predictions: list[Prediction]) -> MeasuredRow:
    cost = predictions[0].cost
    for prediction in predictions[1:]:
        cost += prediction.cost
    return {
        "model": name,
        "videos": len(predictions),
        "frames_total": cost.frames_total,
        "frames_wanted": cost.frames_wanted,
        "frames_decoded": cost.frames_decoded or 0,
        "frames_converted": cost.frames_converted or 0,
        "frames_encoded": cost.frames_encoded or 0,
        "updates": cost.state_updates,
        "decode_s": median(p.seconds.decode for p in predictions),
        "encode_s": median(p.seconds.encode for p in predictions),
        "rnn_s": median(p.seconds.recognise for p in predictions),
        "speed_up": None,
    }


def _total(row: MeasuredRow) -> float:
    return row["decode_s"] + row["encode_s"] + row["rnn_s"]


def _strip(entry: VideoEntry, shown: Shown, manifest: Manifest) -> tuple[str, bytes]:
    prediction = predict(entry.uri, model=shown.model, backbone=shown.backbone)
    task = shown.model.recognizer.config.task
    names = manifest.class_names
    strip = strip_of(
        entry.video_id,
        prediction,
        class_names=names,
        task=task,
        true_spans=[(label.class_id, label.start_s, label.end_s) for label in entry.labels] if task == "frames" else (),
        true_label=None if task == "frames" else ", ".join(names[label.class_id] for label in entry.labels),
        caption=f"{shown.point.settings.model}, {shown.point.settings.setting}",
    )
    return f"{entry.video_id}: {strip.counts}", png(film_strip(strip))


def _tradeoff(record: SweepRecord) -> Figure:
    title = f"{record.metric_name} against state updates per video"
    points = [point.tradeoff for point in record.points]
    return tradeoff_figure(points, metric_name=record.metric_name, title=title)


def _summary(record: SweepRecord, point: SweepPoint, measured: list[MeasuredRow]) -> list[SummaryRow]:
    dense = max((p for p in record.points if p.settings.family == "dense"), key=lambda p: p.metric)
    every, skipping = map(_total, measured)
    return [
        SummaryRow(
            "frames read",
            f"{point.tradeoff.update_share:.0%}",
            f"{point.tradeoff.updates:.1f} a video by the skip network ({point.tradeoff.setting}), "
            f"{dense.tradeoff.updates:.1f} by the dense one",
        ),
        SummaryRow(
            f"{record.metric_name} of the skip network", f"{point.metric:.3f}", f"{dense.metric:.3f} by the dense one"
        ),
        SummaryRow(
            "times as fast",
            f"{every / skipping:.1f}",
            f"from file to labels: {skipping * 1000:.0f} ms a video, {every * 1000:.0f} ms looking at every frame",
        ),
    ]


def _spread(entries: list[VideoEntry], count: int) -> list[VideoEntry]:
    """`count` entries, evenly spread over the list: its first entries may all be of one class."""
    if count >= len(entries):
        return entries
    return [entries[number * len(entries) // count] for number in range(count)]


def _csv(rows: list[TableRow]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(dict(row) for row in rows)
    return text.getvalue().encode()


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
