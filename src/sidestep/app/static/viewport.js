/*
 * <sidestep-viewport>: the photo in 3D before its camera, and a target camera that is dragged about its subject.
 *
 * The world has the subject at its origin, y up, and the photo's camera at distance 1, looking down by the scene's
 * elevation. A pose {yaw, pitch, distance} is that of sidestep.app.poses: degrees to the right and up, both as the
 * photo's camera sees it. Everything that hangs below a camera is in its own frame, in OpenCV's axes.
 */
import * as THREE from "./three/three.module.min.js";

const RAD = Math.PI / 180;
const DISTANCE_STEP = 0.05;
const MIDDLE = new THREE.Vector3(0, 0.08, 0.3); // what the scene turns about
const PATH_CAMERAS = 12; // drawn of a path; its line goes through all
const REACH = { mouse: 48, pen: 56, touch: 72 }; // pixels from the camera within which it is grabbed

const COLOURS = {
  light: { paper: 0xf6f7f9, grid: 0xd4d9e1, source: 0x475569, target: 0xe4570c, guide: 0xf0a884, path: 0x0f8a7e },
  dark: { paper: 0x14181f, grid: 0x2b323d, source: 0xa9b6c8, target: 0xff8a4c, guide: 0x8a5334, path: 0x3fd0be },
};

const TEMPLATE = `
<style>
  :host { display: block; position: relative; height: 100%; font: inherit; color: inherit; }
  #stage { position: absolute; inset: 0; border-radius: inherit; overflow: hidden; touch-action: pan-y; cursor: grab; }
  #stage:focus-visible { outline: 3px solid var(--sidestep-focus, #0f8a7e); outline-offset: -3px; }
  #stage.over { cursor: move; }
  #stage.held { cursor: grabbing; }
  #stage.dropping { outline: 3px dashed var(--sidestep-focus, #0f8a7e); outline-offset: -10px; }
  canvas { display: block; width: 100%; height: 100%; }
  #preview {
    /* Where the page is narrow, the pictures are out of sight while the camera is dragged. */
    position: absolute; right: 10px; top: 10px; width: 27%; max-width: 132px; aspect-ratio: 1; border-radius: 8px;
    border: 2px solid var(--sidestep-target, #e4570c); object-fit: cover; pointer-events: none;
  }
  #message {
    position: absolute; left: 50%; bottom: 14px; translate: -50%; width: max-content; max-width: 84%;
    padding: 0.35rem 0.9rem; border-radius: 99px; background: #0f172acc; color: #fff; font-size: 0.9rem;
    text-align: center; pointer-events: none;
  }
  @media (min-width: 761px) { :host(:not([flat])) #preview { display: none; } }
  :host([flat]) #preview { right: auto; left: 10px; width: auto; height: calc(100% - 20px); border: 0; }
  :host([flat]) #message { left: auto; right: 14px; translate: none; max-width: 60%; border-radius: 12px; }
  [hidden] { display: none !important; }
  .unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
</style>
<div id="stage" tabindex="0" role="application" aria-roledescription="camera control"
     aria-label="Target camera in 3D" aria-describedby="keys">
  <canvas aria-hidden="true"></canvas>
  <img id="preview" alt="" hidden>
  <div id="message"></div>
</div>
<p id="keys" class="unseen">Arrow keys move the camera round the subject, with Shift in larger steps. Plus brings it
nearer, minus takes it farther.</p>
<p id="live" class="unseen" aria-live="polite"></p>`;

export class Viewport extends HTMLElement {
  #pose = { yaw: 20, pitch: 0, distance: 1 };
  #scene = { elevation: 0, fov: 45, limits: { yaw: [-90, 90], pitch: [-60, 60], distance: [0.4, 2] } };
  #photo = "";
  #preview = "";
  #view = { azimuth: -40, height: 26, reach: 2.4 }; // not behind the target, which would hide the photo
  #pointers = new Map();
  #grip = null;
  #asked = 0;
  #speaking = 0;

  constructor() {
    super();
    this.attachShadow({ mode: "open", delegatesFocus: true }).innerHTML = TEMPLATE;
    this.stage = this.shadowRoot.getElementById("stage");
    this.canvas = this.shadowRoot.querySelector("canvas");
    this.#build();
    this.#listen();
  }

  connectedCallback() {
    this.#sizes = new ResizeObserver(() => this.#resize());
    this.#sizes.observe(this);
    this.#theme = new MutationObserver(() => this.#colour());
    this.#theme.observe(document.body, { attributes: true, attributeFilter: ["class"] });
    this.#colour();
    this.toggleAttribute("flat", !this.renderer);
  }

  disconnectedCallback() {
    this.#sizes.disconnect();
    this.#theme.disconnect();
  }

  #sizes;
  #theme;

  /** The target's pose; setting it tells nobody. */
  get pose() {
    return { ...this.#pose };
  }

  set pose(pose) {
    const { yaw, pitch, distance } = { ...this.#pose, ...pose };
    if ([yaw, pitch, distance].every(Number.isFinite)) {
      this.#pose = { yaw, pitch, distance };
      this.#place();
    }
  }

  /** {elevation, fov, limits} as sidestep.app.poses.scene makes it. */
  set scene(scene) {
    if (!scene) return;
    this.#scene = scene;
    this.#place();
  }

  /** The photo's square that the model sees, as a URL; "" while there is none. */
  set photo(url) {
    if (url === this.#photo) return;
    this.#photo = url;
    if (!this.renderer) this.#show(url);
    this.#texture(this.photoPlane, url);
    this.#place();
  }

  /** What the target camera sees, as a URL; "" where that is not known. */
  set preview(url) {
    if (url === this.#preview) return;
    this.#preview = url;
    if (this.renderer) this.#show(url);
    this.#texture(this.previewPlane, url);
    this.#place();
  }

  /** Shows a picture flat beside the scene, or in its place. */
  #show(url) {
    const image = this.shadowRoot.getElementById("preview");
    image.hidden = !url;
    if (url) image.src = url;
  }

  /** Cameras along the path, each 16 numbers row by row: camera to world in the photo camera's frame. */
  set path(matrices) {
    this.#clear(this.path3d);
    const all = matrices ?? [];
    const centres = all.map((numbers) => new THREE.Vector3(numbers[3], numbers[7], numbers[11]));
    const stride = Math.ceil(all.length / PATH_CAMERAS);
    for (const numbers of all.filter((_, i) => (all.length - 1 - i) % stride === 0)) {
      const small = this.#wires(0.09, this.pathLine);
      small.matrixAutoUpdate = false;
      small.matrix.set(...numbers);
      this.path3d.add(small);
    }
    if (centres.length > 1) {
      this.path3d.add(new THREE.Line(new THREE.BufferGeometry().setFromPoints(centres), this.pathLine));
    }
    this.#draw();
  }

  /** The target in the photo camera's frame, camera to world, OpenCV axes, row by row. */
  get matrix() {
    this.world.updateMatrixWorld(true);
    const own = new THREE.Matrix4().copy(this.source.matrixWorld).invert().multiply(this.target.matrixWorld);
    return own.transpose().toArray();
  }

  #build() {
    try {
      this.renderer = new THREE.WebGLRenderer({ canvas: this.canvas, antialias: true });
    } catch {
      this.renderer = null; // the fields beside the view do the same
    }
    this.canvas.addEventListener("webglcontextrestored", () => this.#draw());
    this.world = new THREE.Scene();
    this.eye = new THREE.PerspectiveCamera(38, 1, 0.05, 30);
    this.sourceLine = new THREE.LineBasicMaterial();
    this.pathLine = new THREE.LineBasicMaterial();
    this.guideLine = new THREE.LineBasicMaterial();
    this.targetSkin = new THREE.MeshBasicMaterial();

    this.source = new THREE.Group();
    this.target = new THREE.Group();
    this.path3d = new THREE.Group();
    this.guides = new THREE.Group();
    this.source.add(this.path3d);
    this.world.add(this.source, this.target, this.guides);

    const picture = () =>
      new THREE.Mesh(
        new THREE.PlaneGeometry(1, 1).rotateX(Math.PI),
        new THREE.MeshBasicMaterial({ side: THREE.DoubleSide }),
      );
    this.photoPlane = picture();
    this.previewPlane = picture();
    this.source.add(this.photoPlane);
    this.target.add(this.previewPlane);
    this.sourceWires = new THREE.Group();
    this.source.add(this.sourceWires);
    this.body = new THREE.Group();
    this.target.add(this.body);
  }

  #colour() {
    const scheme = document.body.classList.contains("dark") ? COLOURS.dark : COLOURS.light;
    this.world.background = new THREE.Color(scheme.paper);
    this.sourceLine.color.set(scheme.source);
    this.pathLine.color.set(scheme.path);
    this.guideLine.color.set(scheme.guide);
    this.targetSkin.color.set(scheme.target);
    if (this.grid) {
      this.world.remove(this.grid);
      this.grid.dispose();
    }
    this.grid = new THREE.GridHelper(6, 24, scheme.grid, scheme.grid);
    this.world.add(this.grid);
    this.#place();
  }

  #texture(plane, url) {
    const { material } = plane;
    plane.userData.url = url;
    const put = (map) => {
      material.map?.dispose();
      material.map = map;
      material.needsUpdate = true;
      this.#draw();
    };
    if (!url) {
      put(null);
      return;
    }
    const image = new Image();
    image.onload = () => {
      if (plane.userData.url !== url) return; // another one was set since
      const map = new THREE.Texture(image);
      map.colorSpace = THREE.SRGBColorSpace;
      map.needsUpdate = true;
      put(map);
    };
    image.src = url;
  }

  #clear(group) {
    for (const child of [...group.children]) {
      group.remove(child);
      child.geometry?.dispose();
    }
  }

  /** The outline of a camera whose picture lies at `depth`, with a mark where the picture's top is. */
  #wires(depth, material) {
    const points = this.#edges(depth).flat();
    return new THREE.LineSegments(new THREE.BufferGeometry().setFromPoints(points), material);
  }

  #edges(depth) {
    const s = Math.tan((this.#scene.fov / 2) * RAD) * depth;
    const corner = (x, y) => new THREE.Vector3(x * s, y * s, depth);
    const corners = [corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1)];
    const apex = new THREE.Vector3();
    const top = corner(0, -1.35);
    return [
      ...corners.map((each) => [apex, each]),
      ...corners.map((each, i) => [each, corners[(i + 1) % 4]]),
      [corner(-0.45, -1), top],
      [top, corner(0.45, -1)],
    ];
  }

  /** A camera's outline in bars, which lines of one pixel would not let be grabbed. */
  #bars(depth, radius) {
    return this.#edges(depth).map(([from, to]) => {
      const along = new THREE.Vector3().subVectors(to, from);
      const bar = new THREE.Mesh(new THREE.CylinderGeometry(radius, radius, along.length(), 8), this.targetSkin);
      bar.position.copy(from).addScaledVector(along, 0.5);
      bar.quaternion.setFromUnitVectors(new THREE.Vector3(0, 1, 0), along.normalize());
      return bar;
    });
  }

  #spot(yaw, height, distance) {
    const level = Math.cos(height * RAD) * distance;
    return new THREE.Vector3(
      Math.sin(yaw * RAD) * level,
      Math.sin(height * RAD) * distance,
      Math.cos(yaw * RAD) * level,
    );
  }

  #aim(group, spot) {
    group.position.copy(spot);
    group.up.set(0, 1, 0);
    group.lookAt(0, 0, 0); // z towards the subject, y up
    group.rotateZ(Math.PI); // y down, x right
  }

  #place() {
    if (!this.grid) return;
    const { elevation, fov } = this.#scene;
    const { yaw, pitch, distance } = this.#pose;
    const half = Math.tan((fov / 2) * RAD);
    this.#aim(this.source, this.#spot(0, elevation, 1));
    this.#aim(this.target, this.#spot(yaw, elevation + pitch, distance));

    this.photoPlane.visible = Boolean(this.#photo);
    this.photoPlane.position.set(0, 0, 1);
    this.photoPlane.scale.setScalar(2 * half);
    this.#clear(this.sourceWires);
    this.sourceWires.add(this.#wires(1, this.sourceLine), this.#wires(0.14, this.sourceLine));

    const depth = Math.min(0.26, 0.11 / half);
    this.#clear(this.body);
    this.body.add(...this.#bars(depth, 0.0055));
    this.previewPlane.visible = Boolean(this.#preview && this.#photo);
    this.previewPlane.position.set(0, 0, depth);
    this.previewPlane.scale.setScalar(2 * half * depth);

    this.grid.position.y = -Math.max(0.3, half * Math.cos(elevation * RAD));

    const { limits } = this.#scene;
    const steps = [...Array(49).keys()].map((i) => i / 48);
    const arc = ([low, high], spot) => {
      const points = steps.map((s) => spot(low + s * (high - low)));
      return new THREE.Line(new THREE.BufferGeometry().setFromPoints(points), this.guideLine);
    };
    this.#clear(this.guides);
    this.guides.add(
      arc(limits.yaw, (angle) => this.#spot(angle, elevation + pitch, distance)),
      arc(limits.pitch, (angle) => this.#spot(yaw, elevation + angle, distance)),
      arc([0, 1], (s) => this.#spot(yaw, elevation + pitch, distance * (1 - s))),
    );
    this.#draw();
  }

  #resize() {
    const { clientWidth: width, clientHeight: height } = this;
    if (!this.renderer || !width || !height) return;
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    this.renderer.setSize(width, height, false);
    this.eye.aspect = width / height;
    this.#draw(true);
  }

  /** Puts the eye just far enough away to see both cameras and the photo. */
  #look() {
    const stand = () => {
      this.eye.position.copy(this.#spot(this.#view.azimuth, this.#view.height, this.#view.reach)).add(MIDDLE);
      this.eye.lookAt(MIDDLE);
      this.eye.updateProjectionMatrix();
      this.eye.updateMatrixWorld();
    };
    stand();
    if (this.#grip?.kind === "camera") return; // what is under the pointer must stay there
    this.world.updateMatrixWorld();
    const corners = [-0.5, 0.5].flatMap((x) => [-0.5, 0.5].map((y) => new THREE.Vector3(x, y, 0)));
    const spots = corners.map((each) => this.photoPlane.localToWorld(each));
    spots.push(this.source.position, this.target.position);
    const seen = () =>
      spots.every((each) => {
        const { x, y, z } = each.clone().project(this.eye);
        return Math.max(Math.abs(x), Math.abs(y)) < 0.76 && Math.abs(z) < 1;
      });
    for (this.#view.reach = 2; this.#view.reach < 12; this.#view.reach *= 1.05) {
      stand();
      if (seen()) return;
    }
  }

  #draw(now = false) {
    if (!this.renderer) {
      this.#say("No 3D in this browser: the fields below and the arrow keys move the camera.");
      return;
    }
    this.#say(this.#photo ? "" : "Drop a photo here, or choose an example.");
    const draw = () => {
      this.#asked = 0;
      this.#look();
      this.renderer.render(this.world, this.eye);
    };
    if (now) draw();
    else if (!this.#asked) this.#asked = requestAnimationFrame(draw);
  }

  #say(text) {
    const message = this.shadowRoot.getElementById("message");
    message.textContent = text;
    message.hidden = !text;
  }

  /** Moves the target within the limits, as a user's doing. */
  #move(pose) {
    const { limits } = this.#scene;
    const clamp = (value, [low, high], step) =>
      Math.min(high, Math.max(low, Math.round(value / step) * step));
    const next = {
      yaw: clamp(pose.yaw, limits.yaw, 0.5),
      pitch: clamp(pose.pitch, limits.pitch, 0.5),
      distance: Number(clamp(pose.distance, limits.distance, 0.01).toFixed(2)),
    };
    if (Object.keys(next).every((key) => next[key] === this.#pose[key])) return;
    this.#pose = next;
    this.#place();
    this.dispatchEvent(new CustomEvent("pose", { detail: this.pose }));
    clearTimeout(this.#speaking);
    this.#speaking = setTimeout(() => {
      const { yaw, pitch, distance } = this.#pose;
      const side = yaw ? `${Math.abs(yaw)} degrees ${yaw > 0 ? "right" : "left"}` : "straight on";
      const height = pitch ? `, ${Math.abs(pitch)} ${pitch > 0 ? "up" : "down"}` : "";
      this.shadowRoot.getElementById("live").textContent = `Camera ${side}${height}, distance ${distance}`;
    }, 500);
  }

  /** Where the target can be grabbed, in pixels from the upper left corner. */
  get spot() {
    this.world.updateMatrixWorld(true);
    this.#look();
    const centre = this.previewPlane.getWorldPosition(new THREE.Vector3()).lerp(this.target.position, 0.5);
    const spot = centre.project(this.eye);
    return { x: ((spot.x + 1) / 2) * this.clientWidth, y: ((1 - spot.y) / 2) * this.clientHeight };
  }

  /** The pose on the sphere about the subject that lies under a place on the stage. */
  #under(x, y) {
    const ray = new THREE.Raycaster();
    ray.setFromCamera(new THREE.Vector2((x / this.clientWidth) * 2 - 1, 1 - (y / this.clientHeight) * 2), this.eye);
    const sphere = new THREE.Sphere(new THREE.Vector3(), this.#pose.distance * this.#grip.inner);
    // Beside the sphere: its point nearest to the ray.
    const spot =
      ray.ray.intersectSphere(sphere, new THREE.Vector3()) ??
      ray.ray.closestPointToPoint(new THREE.Vector3(), new THREE.Vector3());
    spot.normalize();
    return {
      yaw: Math.atan2(spot.x, spot.z) / RAD,
      pitch: Math.asin(spot.y) / RAD - this.#scene.elevation,
      distance: this.#pose.distance,
    };
  }

  #listen() {
    const { stage } = this;
    const at = (event) => {
      const box = stage.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const nearTarget = (event) => {
      const here = at(event);
      const there = this.spot;
      return Math.hypot(here.x - there.x, here.y - there.y) < (REACH[event.pointerType] ?? REACH.mouse);
    };
    const spread = () => {
      const [one, other] = [...this.#pointers.values()];
      return Math.hypot(one.x - other.x, one.y - other.y);
    };

    // Beside the camera, one finger scrolls the page.
    stage.addEventListener(
      "touchstart",
      (event) => {
        const { clientX, clientY } = event.touches[0];
        const near = nearTarget({ clientX, clientY, pointerType: "touch" });
        if (near || event.touches.length > 1) event.preventDefault();
      },
      { passive: false },
    );
    stage.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      stage.focus({ preventScroll: true, focusVisible: false });
      stage.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, at(event));
      stage.classList.add("held");
      if (this.#pointers.size === 2) {
        this.#grip = { kind: "pinch", spread: spread(), distance: this.#pose.distance };
      } else if (nearTarget(event)) {
        const here = at(event);
        const there = this.spot;
        const depth = this.previewPlane.position.z / 2 / this.#pose.distance;
        this.#grip = { kind: "camera", dx: there.x - here.x, dy: there.y - here.y, inner: 1 - depth };
      } else {
        this.#grip = { kind: "look", ...at(event), view: { ...this.#view } };
      }
    });
    stage.addEventListener("pointermove", (event) => {
      const here = at(event);
      if (!this.#pointers.has(event.pointerId)) {
        stage.classList.toggle("over", nearTarget(event));
        return;
      }
      this.#pointers.set(event.pointerId, here);
      const grip = this.#grip;
      if (grip?.kind === "pinch" && this.#pointers.size === 2) {
        this.#move({ ...this.#pose, distance: (grip.distance * grip.spread) / Math.max(1, spread()) });
      } else if (grip?.kind === "camera") {
        this.#move(this.#under(here.x + grip.dx, here.y + grip.dy));
      } else if (grip?.kind === "look") {
        const turn = (value, low, high) => Math.min(high, Math.max(low, value));
        this.#view.azimuth = turn(grip.view.azimuth - (here.x - grip.x) * 0.4, -80, 80);
        this.#view.height = turn(grip.view.height + (here.y - grip.y) * 0.4, -5, 85);
        this.#draw();
      }
    });
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, (event) => {
        this.#pointers.delete(event.pointerId);
        this.#grip = null;
        if (!this.#pointers.size) stage.classList.remove("held");
      });
    }
    stage.addEventListener(
      "wheel",
      (event) => {
        // The page scrolls on until the control was chosen.
        if (this.shadowRoot.activeElement !== stage) return;
        event.preventDefault();
        this.#move({ ...this.#pose, distance: this.#pose.distance * Math.exp(event.deltaY * 0.001) });
      },
      { passive: false },
    );
    stage.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 10 : 2;
      const { yaw, pitch, distance } = this.#pose;
      const moved = {
        ArrowLeft: { yaw: yaw - step },
        ArrowRight: { yaw: yaw + step },
        ArrowUp: { pitch: pitch + step },
        ArrowDown: { pitch: pitch - step },
        "+": { distance: distance - DISTANCE_STEP },
        "=": { distance: distance - DISTANCE_STEP },
        "-": { distance: distance + DISTANCE_STEP },
      }[event.key];
      if (!moved || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.#move({ ...this.#pose, ...moved });
    });

    const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    stage.addEventListener("dragover", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      stage.classList.add("dropping");
    });
    stage.addEventListener("dragleave", () => stage.classList.remove("dropping"));
    stage.addEventListener("drop", (event) => {
      stage.classList.remove("dropping");
      if (!files(event)) return;
      event.preventDefault();
      this.dispatchEvent(new CustomEvent("photo", { detail: event.dataTransfer.files[0] }));
    });
  }
}

customElements.define("sidestep-viewport", Viewport);
