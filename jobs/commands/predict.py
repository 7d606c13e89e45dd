"""Label videos: frames that the network skips are neither decoded nor encoded.

Results go to standard output as one JSON object per video, to a file (--output x.jsonl, .csv, .parquet, or .txt for
Charades' evaluation), or, as a job on the Ray cluster that can be interrupted and run again, to a folder of Parquet
shards (--output FOLDER). Exit code 0: every video was labelled; 3: some could not be; 1: the job failed.
"""

import json
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

import tyro

from skipreel.jobs.closed_loop.live import follow, open_live_session
from skipreel.jobs.closed_loop.prediction import Prediction
from skipreel.jobs.closed_loop.recognizer import VideoRecognizer, trained_model
from skipreel.jobs.closed_loop.scheduler import SchedulerSettings
from skipreel.jobs.closed_loop.session import Request
from skipreel.jobs.predictions.files import Format, PredictionWriter, choose_format, open_writer
from skipreel.jobs.predictions.inputs import VideoInputs, require_distinct_ids, video_inputs
from skipreel.jobs.predictions.job import JobSettings, ProcessSettings, run_job
from skipreel.jobs.reporting.video_strip import StripFolder
from skipreel.jobs.runtime.terminal import console, progress_bar
from skipreel.models import Cost
from skipreel.pipeline import storage
from skipreel.pipeline.errors import InputError, VideoError

EXIT_SOME_FAILED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is labelled, by which model, and where the results go.

    Attributes:
        videos: files, folders or URIs.
        model: a checkpoint folder written by train or sweep, or runs:/… or models:/… of MLflow.
        manifest: label the videos of this manifest.
        split: only this split of it.
        live: label a live stream instead: a pipe (- for standard input) or an rtsp://, http://, … address.
        output: a file, or a folder (or URI) for a job on the cluster; default: standard output.
        format: of the output, if its suffix does not say.
        frame_scores: with JSON lines, add the scores and times of all sampled frames.
        strip: a folder that gets a film strip of every video.
        budget: share of the frames to look at on average, such as 0.1, in place of what the network was trained for.
        threshold: a class counts as seen in a frame from this probability on (task frames).
        backbone: where the model's backbone is found now, if not where the training found it.
        device: where the backbone runs.
        tracking_uri: MLflow's server or database, for runs:/ and models:/; default: MLFLOW_TRACKING_URI.
    """

    videos: tyro.conf.Positional[tuple[str, ...]] = ()
    model: str
    manifest: str | None = None
    split: str | None = None
    live: str | None = None
    output: str | None = None
    format: Format | None = None
    frame_scores: bool = False
    strip: str | None = None
    budget: float | None = None
    threshold: float = 0.5
    looking: SchedulerSettings = field(default_factory=SchedulerSettings)
    job: ProcessSettings = field(default_factory=ProcessSettings)
    backbone: str | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise InputError(f"--threshold is {self.threshold}, it must lie between 0 and 1")
        if self.live is not None and (self.videos or self.manifest or self.looking.dense or self.output or self.strip):
            raise InputError("--live labels one stream as it comes, to standard output: give it with --model alone")
        if self.is_job and (self.strip is not None or self.frame_scores):
            raise InputError(
                f"--output {self.output} is a folder, for shards with all scores: leave out --strip and "
                "--frame-scores, or name a file such as labels.jsonl"
            )
        if not self.is_job:
            choose_format(self.output, self.format)

    @property
    def is_job(self) -> bool:
        """Whether the output is a folder, filled by the cluster."""
        if self.output is None or self.format is not None:
            return False
        path = self.output.partition("?")[0] if storage.local_path(self.output) is None else self.output
        return not PurePosixPath(path).suffix


def run(settings: Settings) -> int:
    """Label what was given."""
    if settings.live is not None:
        return _label_live(settings, settings.live)
    inputs = video_inputs(settings.videos, manifest=settings.manifest, split=settings.split)
    if settings.is_job:
        return _run_job(settings, inputs)
    form = choose_format(settings.output, settings.format)
    if form.startswith("charades"):
        require_distinct_ids(inputs)
    recognizer = _load(settings)
    names, task, threshold = recognizer.class_names, recognizer.task, settings.threshold
    with open_writer(
        settings.output,
        settings.format,
        class_names=names,
        task=task,
        threshold=threshold,
        frame_scores=settings.frame_scores,
    ) as writer:
        strips = settings.strip and StripFolder(settings.strip, names, task, threshold, settings.looking.decoder)
        return _label(settings, recognizer, inputs, writer, strips or None)


def _load(settings: Settings) -> VideoRecognizer:
    return VideoRecognizer.load(
        settings.model,
        budget=settings.budget,
        backbone=settings.backbone,
        device=settings.device,
        decoder=settings.looking.decoder,
        tracking_uri=settings.tracking_uri,
    )


def _label(
    settings: Settings,
    recognizer: VideoRecognizer,
    inputs: VideoInputs,
    writer: PredictionWriter,
    strips: StripFolder | None,
) -> int:
    cost: Cost | None = None
    failed, started = 0, time.perf_counter()
    outcomes = recognizer.stream(
        (Request(video.key, video.uri) for video in inputs),
        dense=settings.looking.dense,
        in_flight=settings.looking.in_flight,
        time_limit_s=settings.looking.time_limit_s,
    )
    with closing(outcomes), progress_bar() as bar:
        room_for_lines = bar.cleared if settings.output is None else nullcontext
        task = bar.add_task("labelling videos", total=len(inputs), note="")
        for outcome in outcomes:
            key, prediction = outcome.request.key, outcome.prediction
            if prediction is None:
                failed += 1
                with room_for_lines():
                    writer.fail(key, outcome.request.uri, outcome.reason)
                console.print(f"failed: {outcome.reason}", markup=False)
            else:
                with room_for_lines():
                    writer.add(key, prediction)
                cost = prediction.cost if cost is None else cost + prediction.cost
                if strips is not None:
                    _draw(strips, key, prediction)
            bar.advance(task)
    if cost is None:
        console.print(f"no video was labelled, {failed} failed")
    else:
        _report(cost, len(inputs) - failed, failed, seconds=time.perf_counter() - started)
    return EXIT_SOME_FAILED if failed else 0


def _draw(strips: StripFolder, key: str, prediction: Prediction) -> None:
    try:
        strips.add(key, prediction)
    except VideoError as error:  # in a frame that the network did without
        console.print(f"no film strip: {error}", markup=False)


def _report(cost: Cost, labelled: int, failed: int, *, seconds: float) -> None:
    """The ledger in a sentence."""
    console.print(
        f"labelled {labelled} videos{f', {failed} failed' if failed else ''}, in {seconds:.1f} s: looked at "
        f"{cost.frames_wanted} of {cost.frames_total} sampled frames ({cost.frames_wanted / cost.frames_total:.1%}); "
        f"{cost.frames_decoded} decoded, {cost.frames_converted} converted to RGB, {cost.frames_encoded} encoded"
    )


def _label_live(settings: Settings, source: str) -> int:
    recognizer = _load(settings)
    session = open_live_session(
        source, model=recognizer.model, backbone=recognizer.backbone, threshold=settings.threshold
    )
    follow(session, lambda line: print(json.dumps(line), flush=True))
    return 0


def _run_job(settings: Settings, inputs: VideoInputs) -> int:
    assert settings.output is not None
    job = JobSettings(
        output=settings.output,
        model=settings.model,
        backbone=settings.backbone,
        device=settings.device,
        looking=settings.looking,
        processes=settings.job,
    )
    model = trained_model(settings.model, budget=settings.budget, tracking_uri=settings.tracking_uri)
    summary = run_job(job, model=model, videos=inputs, num_videos=len(inputs))
    if summary["finished"]:
        seconds = summary["this_run"]["seconds"]
        _report(Cost(**summary["cost"]), summary["finished"], summary["failed"], seconds=seconds)
    print(json.dumps(summary))
    return EXIT_SOME_FAILED if summary["failed"] else 0
