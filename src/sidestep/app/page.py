"""The page: what stands where, and which control calls what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from sidestep.app import parts
from sidestep.app.handlers import MAKE_VIEW, ON_DEMAND, SINGLE, Handlers, categories, reads_text
from sidestep.app.poses import Pose
from sidestep.app.session import MAX_FPS, MAX_FRAMES
from sidestep.app.sessions import MAX_SESSIONS, Sessions
from sidestep.app.studio import Studio
from sidestep.images import load_image, resize_and_crop
from sidestep.models import BUNDLED
from sidestep.pipeline import DEFAULT_FOV, Fusion

PATHS = [
    ("One view", SINGLE),
    ("Orbit", "orbit"),
    ("Dolly", "dolly"),
    ("Dolly zoom", "dolly-zoom"),
    ("Spiral", "spiral"),
    ("Key frames", "keys"),
]

_HEAD = """
<header><h1>Sidestep</h1><p>Take one photo, step to the side, look again.</p></header>
"""
_HONEST = """
<p class="honest">The bundled model is small: it turns furniture the right way but blurs it, and knows little else.
<a href="sidestep/model-card" target="_blank">What it can and cannot do</a></p>
"""
_CREDIT = '<p class="credit">Examples rendered from models by Scopia, CC BY 3.0.</p>'

# In the browser alone, so that nobody waits for it.
_TO_NUMBERS = "(pose) => [pose.yaw, pose.pitch, pose.distance]"
_TO_POSE = """(yaw, pitch, distance, last) =>
    [[yaw, pitch, distance].every(Number.isFinite) ? { yaw, pitch, distance } : last]"""  # not while one is typed
_HAS_PHOTO = "(...inputs) => [...inputs.slice(0, -1), Boolean(inputs.at(-1))]"  # no need to send it back
_ADD, _REMOVE, _CLEAR = "(keys, pose) => [[...keys, pose]]", "(keys) => [keys.slice(0, -1)]", "() => [[]]"


def build_page(studio: Studio, sessions: Sessions, examples: Sequence[Path]) -> gr.Blocks:
    """
    Args:
        studio: its first model is loaded for what the page offers at the start.
        sessions: where the users' photos and work are.
        examples: photos to start with.
    """
    with gr.Blocks(title="Sidestep", analytics_enabled=False) as page:
        _connect(page, Controls(studio, examples), Handlers(studio, sessions, examples))
    page.queue(max_size=128, default_concurrency_limit=4, api_open=False)
    page.state_session_capacity = 2 * MAX_SESSIONS  # whose pictures gradio keeps, for links that this page has not
    page.has_launched = True  # else gradio takes any file of this machine for an upload
    return page


class Controls:
    """What the page's events read and write."""

    def __init__(self, studio: Studio, photos: Sequence[Path]) -> None:
        """Lays them out in the `gr.Blocks` that is open."""
        first = studio.models[0]
        pipe, elevation = studio.pipe(first), studio.elevation(first)
        start = Pose()
        thumbnails = [(path.stem, resize_and_crop(load_image(path), 96)) for path in photos]
        gr.HTML(_HEAD, js_on_load=None, apply_default_css=False)
        with gr.Row(elem_id="workbench"):
            with gr.Column(scale=6, min_width=320):
                with gr.Row(elem_id="start"):
                    self.upload = gr.File(
                        label="Photo (JPEG, PNG, WebP)",
                        show_label=False,
                        file_types=[".jpg", ".jpeg", ".png", ".webp"],
                        height=124,
                        min_width=150,
                        elem_id="upload",
                    )
                    with gr.Column(min_width=150):
                        self.examples = parts.examples(thumbnails)
                        gr.HTML(_CREDIT, js_on_load=None, apply_default_css=False)
                self.viewport = parts.viewport(elevation, DEFAULT_FOV)
                with gr.Row(elem_id="act"):
                    self.make = gr.Button(MAKE_VIEW, variant="primary", elem_id="make", scale=3, min_width=140)
                    self.cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", scale=1, min_width=90)
                self.status = parts.status()
                with gr.Row(elem_id="pose"):
                    yaw = _number("Yaw °", start.yaw)
                    pitch = _number("Pitch °", start.pitch)
                    distance = _number("Distance", start.distance, step=0.05)
                self.pose = [yaw, pitch, distance]
                self.path = gr.Radio(PATHS, value=SINGLE, label="Path", elem_id="path")
                with gr.Column(visible=False, elem_id="recorder") as self.recorder:
                    self.keys = parts.key_frames()
                    with gr.Row():
                        self.add = gr.Button("Add this camera", size="sm", scale=2, min_width=118, elem_id="add")
                        self.remove = gr.Button("Remove last", size="sm", min_width=100)
                        self.clear = gr.Button("Clear", size="sm", min_width=54)
                with gr.Column(visible=False) as self.film:
                    with gr.Row():
                        self.frames = gr.Slider(
                            2, MAX_FRAMES, 24, step=1, label="Frames", min_width=120, elem_id="frames"
                        )
                        self.fps = gr.Slider(1, MAX_FPS, 12, step=1, label="Frames a second", min_width=120)
                    with gr.Row():
                        self.smooth = gr.Checkbox(label="Start and stop gently", min_width=120)
                        self.loop = gr.Checkbox(label="Play there and back", min_width=120)
            with gr.Column(scale=5, min_width=320):
                with gr.Row(elem_id="pictures"):
                    self.photo = parts.figure("Photo", "its centre square", "The photo as the model sees it", "photo")
                    self.coarse = parts.figure(
                        "Coarse", "layout, live", "Coarse view from the target camera", "coarse", "live"
                    )
                    self.final = parts.figure("Final", ON_DEMAND, "Final view from the target camera", "final")
                    self.compare = parts.compare()
                self.video = gr.Video(
                    label="Video",
                    visible=False,
                    autoplay=True,
                    loop=True,
                    interactive=False,
                    buttons=[],
                    elem_id="video",
                )
                self.download = gr.DownloadButton("Download pictures and cameras", visible=False, elem_id="download")
                if BUNDLED in studio.models:
                    gr.HTML(_HONEST, js_on_load=None, apply_default_css=False)
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    with gr.Row():
                        self.model = gr.Dropdown(
                            studio.models,
                            value=first,
                            label="Model",
                            info="What makes the views.",
                            visible=len(studio.models) > 1,
                            min_width=140,
                        )
                        self.category = gr.Dropdown(
                            categories(pipe), value="", label="Category", info="What the photo shows.", min_width=140
                        )
                        self.fov = _number("Field of view °", DEFAULT_FOV, info="Shorter side.", elem_id="fov")
                    with gr.Row():
                        self.fusion = gr.Dropdown(
                            list(get_args(Fusion)),
                            value="variance",
                            label="Fusion",
                            info="How noise is put back.",
                            min_width=140,
                        )
                        self.steps = _number("Steps", 30, info="Of the sampling.", precision=0, elem_id="steps")
                        self.seed = _number("Seed", 0, info="Where noise is drawn.", precision=0)
                    self.consistency = gr.Slider(
                        0, 1, 0, step=0.05, label="Consistency", info="How much the views of a path are steadied."
                    )
                    with gr.Column(visible=reads_text(pipe), elem_id="text") as self.text:
                        prompt = gr.Textbox(label="Prompt", info="What the final view is guided towards.")
                        self.describe = gr.Button("Describe the photo", size="sm", elem_id="describe")
                        negative = gr.Textbox(label="Negative prompt", info="Acts beside a prompt.")
                        self.guidance = gr.Slider(0, 15, 3.5, step=0.1, label="Guidance")
                self.prompts = [prompt, negative]


def _connect(page: gr.Blocks, on: Controls, do: Handlers) -> None:
    scene: list[Any] = [on.viewport, on.fov, on.model, on.category, on.path, on.frames, on.smooth, on.keys]
    opened = [on.upload, on.fov, on.photo, on.viewport, on.final, on.compare, on.video, on.download, on.status]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # What comes while an answer is awaited is asked together, as it is by then; gradio's default drops it.
    newest: dict[str, Any] = {"trigger_mode": "always_last"}
    follow: dict[str, Any] = {"fn": do.follow, "js": _HAS_PHOTO, **quiet, **newest}
    follow |= {"inputs": [*scene, on.photo], "outputs": [on.coarse, on.viewport, on.photo]}
    # Who waits for the model is the studio's affair, but waits in one of gradio's 40 threads, and others need some.
    follow["concurrency_limit"] = 16

    on.upload.upload(do.upload, [on.upload, on.model], opened, **quiet).then(**follow)
    on.examples.click(do.example, [on.model], opened, **quiet).then(**follow)

    on.viewport.input(None, [on.viewport], on.pose, js=_TO_NUMBERS, **quiet, **newest)
    on.viewport.input(**follow)
    numbers = [each.input for each in on.pose]
    gr.on(numbers, None, [*on.pose, on.viewport], [on.viewport], js=_TO_POSE, **quiet, **newest).then(**follow)
    gr.on([on.fov.input, on.category.input, on.frames.release, on.smooth.input], **follow)
    for button, inputs, change in (
        (on.add, [on.keys, on.viewport], _ADD),
        (on.remove, [on.keys], _REMOVE),
        (on.clear, None, _CLEAR),
    ):
        button.click(None, inputs, [on.keys], js=change, **quiet).then(**follow)
    on.path.input(
        do.choose_path,
        [on.path, on.viewport],
        [on.viewport, *on.pose, on.recorder, on.film, on.make],
        queue=False,
        **quiet,
    ).then(**follow)
    on.model.input(do.choose_model, [on.model], [on.category, on.text, on.photo, on.viewport], **quiet).then(**follow)

    on.describe.click(do.describe, None, [on.prompts[0], on.status], concurrency_limit=1, **quiet)

    # In the browser, because gradio reads its own states when work starts and not when it was asked for.
    turn = gr.Number(visible=False)
    on.make.click(do.begin, None, [turn, on.status, on.cancel], queue=False, **quiet).then(
        do.make,
        [turn, *scene, on.fps, on.loop, on.fusion, on.steps, on.seed, on.consistency, *on.prompts, on.guidance],
        [on.status, on.final, on.compare, on.video, on.download, on.cancel],
        concurrency_limit=1,
        **quiet,
        **newest,  # once the last work has ended; begin told it to
    ).failure(do.fail, None, [on.status, on.cancel], queue=False, **quiet)
    # The button that has the focus is switched off.
    focus = "() => document.querySelector('#make').focus()"
    on.cancel.click(do.cancel, None, [on.status, on.cancel], queue=False, js=focus, **quiet)
    page.unload(do.leave)


def _number(label: str, value: float, **options: Any) -> gr.Number:
    # No limits here: gradio would not say which number it refuses.
    return gr.Number(value, label=label, min_width=90, **options)
