"""The page's own components: what gradio has none of, or none that the keyboard and a screen reader can use."""

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from sidestep.app.poses import Pose, scene
from sidestep.images import jpeg_url

_VIEWPORT = """
<sidestep-viewport></sidestep-viewport>
<p class="hint">Drag the orange camera. Arrow keys move it too, + and − change its distance, and dragging beside it
turns the scene.</p>
"""

# The scene follows what the server sends; poses go back at most every 60 ms while the camera is dragged.
_VIEWPORT_JS = """
const view = element.querySelector('sidestep-viewport');
let waiting = 0, last = 0;
const tell = () => { waiting = 0; last = Date.now(); trigger('input'); };
view.addEventListener('pose', (event) => {
    props.value = event.detail;
    if (!waiting) waiting = setTimeout(tell, Math.max(0, 60 - (Date.now() - last)));
});
view.addEventListener('photo', (event) => {
    const input = document.querySelector('#upload input[type=file]');
    const files = new DataTransfer();
    files.items.add(event.detail);
    input.files = files.files;
    input.dispatchEvent(new Event('change', { bubbles: true }));
});
import(new URL('sidestep/viewport.js', document.baseURI)).then(() => {
    const names = { scene: 'scene', photo: 'photo', preview: 'preview', path: 'path', value: 'pose' };
    for (const [prop, name] of Object.entries(names)) {
        view[name] = props[prop];
        watch(prop, () => { view[name] = props[prop]; });
    }
});
"""

_FIGURE = """
<figure class="figure ${tone}">
    <div class="frame">${value ? `<img src="${value}" alt="${alt}">` : ''}</div>
    <figcaption>${caption} <small>${note}</small></figcaption>
</figure>
"""

_COMPARE = """
<figure class="figure">
    <div class="frame">${value ? `
        <div class="compare">
            <img src="${value.coarse}" alt="Coarse view"><img src="${value.final}" alt="Final view" class="upper">
            <input type="range" min="0" max="100" value="50" aria-label="Share of the coarse view against the final">
            <span class="left">coarse</span><span class="right">final</span>
        </div>` : ''}</div>
    <figcaption>Coarse against final <small>what the detail adds</small></figcaption>
</figure>
"""

_COMPARE_JS = """
element.addEventListener('input', (event) => {
    event.target.parentElement.style.setProperty('--split', event.target.value + '%');
});
watch('value', () => {
    const range = element.querySelector('input');  // another one each time
    if (range) element.querySelector('.compare').style.setProperty('--split', range.value + '%');
});
"""

_STATUS = """
<div class="status ${value.tone}">
    <p><span>${value.text}</span>
    ${value.total > 1 ? `<span aria-hidden="true">${value.done} of ${value.total}</span>` : ''}</p>
    ${value.total ? `<progress max="${value.total}" value="${value.done}" aria-label="${value.text}"></progress>` : ''}
</div>
"""

# The template's nodes are replaced at each update; a screen reader tells what changes in one that stays.
_STATUS_JS = """
const live = document.body.appendChild(document.createElement('p'));
live.className = 'unseen';
live.setAttribute('role', 'status');
watch('value', () => {
    const { textContent } = element.querySelector('p span');
    if (live.textContent !== textContent) live.textContent = textContent;
});
"""

_EXAMPLES = """
<div class="examples" role="group" aria-label="Examples">
    ${value.map((each, i) => `<button type="button" data-index="${i}" aria-label="Use the example ${each.name}">
        <img src="${each.url}" alt=""></button>`).join('')}
</div>
"""

_EXAMPLES_JS = """
element.addEventListener('click', (event) => {
    const button = event.target.closest('button');
    if (button) trigger('click', { index: Number(button.dataset.index) });
});
"""


_KEY_FRAMES = """
<ol class="keys" aria-label="Key frames" aria-live="polite">
    ${value.map((key) => `<li>${key.yaw}° yaw, ${key.pitch}° pitch, distance ${key.distance}</li>`).join('')}
</ol>
${value.length < 2 ? '<p class="hint">Move the orange camera and add it, twice or more.</p>' : ''}
"""


def viewport(elevation: float, fov: float) -> gr.HTML:
    """The scene in 3D. Its value is the target's pose; its event `input` comes while a user moves it."""
    pose = Pose()
    return gr.HTML(
        {"yaw": pose.yaw, "pitch": pose.pitch, "distance": pose.distance},
        html_template=_VIEWPORT,
        js_on_load=_VIEWPORT_JS,
        apply_default_css=False,
        elem_id="viewport",
        scene=scene(elevation, fov),
        photo="",
        preview="",
        path=[],
    )


def figure(caption: str, note: str, alt: str, elem_id: str, tone: str = "") -> gr.HTML:
    """A picture with its name and a few words below. Its value is a URL, "" while there is none."""
    return gr.HTML(
        "",
        html_template=_FIGURE,
        js_on_load=None,
        apply_default_css=False,
        elem_id=elem_id,
        caption=caption,
        note=note,
        alt=alt,
        tone=tone,
    )


def key_frames() -> gr.HTML:
    """The list of key frames. Its value is a list of poses, each as the viewport's value."""
    return gr.HTML([], html_template=_KEY_FRAMES, js_on_load=None, apply_default_css=False, elem_id="keys")


def compare() -> gr.HTML:
    """Two pictures of one size, one drawn over the other. Its value is {"coarse": url, "final": url}, or None."""
    return gr.HTML(None, html_template=_COMPARE, js_on_load=_COMPARE_JS, apply_default_css=False, elem_id="compare")


def status() -> gr.HTML:
    """What is being done, for eyes and for screen readers. Its value is made by `told`."""
    return gr.HTML(
        told("Start with a photo."),
        html_template=_STATUS,
        js_on_load=_STATUS_JS,
        apply_default_css=False,
        elem_id="status",
    )


def told(text: str, done: int = 0, total: int = 0, *, tone: str = "") -> dict[str, Any]:
    """The value of a status line; tone: "" or "bad"."""
    return {"text": html.escape(text), "done": done, "total": total, "tone": tone}


def examples(pictures: Sequence[tuple[str, Image.Image]]) -> gr.HTML:
    """Buttons with a picture each; the event `click` carries the index of one."""
    value = [{"name": html.escape(name), "url": jpeg_url(image)} for name, image in pictures]
    return gr.HTML(value, html_template=_EXAMPLES, js_on_load=_EXAMPLES_JS, apply_default_css=False, elem_id="examples")
