"""How every command talks: what goes where, how it ends, and that an interrupt leaves nothing broken."""

import json
import logging
import os
import pty
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DModel

from sidestep.captures import read_captures
from sidestep.captures.splits import write_split
from sidestep.errors import SidestepError
from sidestep.pipeline import NovelViewPipeline
from sidestep.prior import LatentPrior

FURNITURE = Path(__file__).parents[1] / "data" / "furniture"
CHAIR = Path(__file__).parents[2] / "examples" / "chair.jpg"
Command = Callable[..., int]  # runs the command line, by its arguments; the exit code
COMMANDS = ("view", "app", "prior", "encode", "train", "pretrain", "evaluate", "pack", "verify", "capture")
ASK = """
import sys
from sidestep.cli import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "diffusers", "transformers", "accelerate", "numpy", "PIL"} & set(sys.modules)
    print(end.code or 0, sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), *((command, "--help") for command in COMMANDS)], ids=" ".join
)
def test_help_and_version_answer_without_loading_anything_large(arguments: tuple[str, ...]) -> None:
    result = subprocess.run([sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "0 []"
    if "--help" in arguments:
        assert "Usage" in result.stdout
    else:
        assert result.stdout.strip()[0].isdigit()


def test_the_help_lists_every_command(
    sidestep: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sidestep("--help") == 0
    told = capsys.readouterr().out
    assert all(command in told for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        ("view", "a.jpg", "--out", "b.png", "--yawn", "3"),
        ("look",),
        ("view",),
        ("view", "a.jpg", "--out", "b.png", "--frames", "1"),
    ],
)
def test_a_wrong_command_line_exits_with_an_error(
    sidestep: Command, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert sidestep(*arguments) == 2
    assert "Usage" in capsys.readouterr().err


@pytest.fixture
def view(sidestep: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs `sidestep [BEFORE ...] view ... [AFTER ...]`, whose pipeline does `work`; the exit code."""

    def run(work: Callable[[], None], *after: str, before: tuple[str, ...] = ()) -> int:
        monkeypatch.setattr(NovelViewPipeline, "from_pretrained", lambda *_, **__: work())
        return sidestep(*before, "view", CHAIR, "--out", tmp_path / "out.png", *after)

    return run


def fails(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


DEFECT = ZeroDivisionError("float division\nby zero")


@pytest.mark.parametrize("before", [True, False])
def test_a_defect_is_one_line_and_with_debug_a_trace(
    view: Callable[..., int], capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    assert view(fails(DEFECT)) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError: float division by zero" in line
    assert "--debug" in line

    assert (view(fails(DEFECT), before=("--debug",)) if before else view(fails(DEFECT), "--debug")) == 70
    told = capsys.readouterr().err
    assert "Traceback (most recent call last)" in told
    assert "test_manners.py" in told


@pytest.mark.parametrize(
    ("error", "code", "fault"),
    [
        (SidestepError("a.jpg: no such file; name another"), 1, "a.jpg: no such file; name another"),
        (OSError(28, "No space left on device", "out.png"), 1, "out.png: No space left on device"),
        (DEFECT, 70, "ZeroDivisionError: float division by zero"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_with_json_an_error_is_json_too_wherever_the_option_stands(
    view: Callable[..., int], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, fault: str
) -> None:
    assert view(fails(error), "--json") == code
    after = capsys.readouterr()
    assert fault in json.loads(after.out)["error"]
    assert fault in after.err
    assert view(fails(error), before=("--json",)) == code
    assert capsys.readouterr().out == after.out
    assert view(fails(error)) == code
    without = capsys.readouterr()
    assert without.out == ""
    assert without.err == after.err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
    ids=["device", "machine", "python"],
)
def test_too_little_memory_is_no_defect(
    view: Callable[..., int], capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    assert view(fails(error)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not enough memory; ")
    assert "defect" not in line


def test_the_page_says_its_address_as_the_one_object_and_serves(
    sidestep: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")

    def serve(studio: object, host: str, port: int, ready: Callable[[str], None], token: str | None) -> None:
        ready(f"http://{host}:{port}")
        raise KeyboardInterrupt

    monkeypatch.setattr("sidestep.app.server.serve", serve)
    assert sidestep("app", "--port", 7, "--json") == 130
    assert json.loads(capsys.readouterr().out) == {"url": "http://127.0.0.1:7"}
    assert sidestep("app", "--port", 7) == 130
    assert capsys.readouterr().out.startswith("Sidestep is at http://127.0.0.1:7 ")


def test_options_of_every_command_stand_before_the_second_name_too(
    sidestep: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect = ("inspect", FURNITURE, "--no-photos")
    for command in (("capture", "--json", *inspect), ("capture", *inspect, "--json"), ("--json", "capture", *inspect)):
        assert sidestep(*command) == 0
        assert "scenes" in json.loads(capsys.readouterr().out)


def test_quiet_leaves_messages_out_and_warnings_in(view: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("sidestep.anything")

    def work() -> None:
        logger.info("step 20")
        logger.warning("no EXIF")
        raise SidestepError("enough")

    for place in ({"before": ("-q",)}, {}):
        view(work, *(() if place else ("--quiet",)), **place)
        assert [record.message for record in caplog.records] == ["no EXIF"]
        caplog.clear()
    view(work)
    assert [record.message for record in caplog.records] == ["step 20", "no EXIF"]


def test_only_our_own_warnings_are_shown_without_debug(
    view: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        for module in ("transformers.models", "sidestep.images"):
            warnings.warn_explicit(f"from {module}", UserWarning, "file.py", 1, module=module)
        raise SidestepError("enough")

    view(work)
    assert [record.message for record in caplog.records] == ["from sidestep.images"]
    caplog.clear()
    view(work, "--debug")
    assert [record.message for record in caplog.records] == ["from transformers.models", "from sidestep.images"]


def test_a_termination_ends_in_order(view: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert view(work) == 143
    assert cleaned
    assert capsys.readouterr().err.splitlines() == ["terminated"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_may_run_a_command(view: Callable[..., int]) -> None:
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(view, fails(SidestepError("enough"))).result() == 1


# Ctrl-C while the commands are imported, for the process that pip's script starts and for `python -m sidestep`.
INTERRUPTED_EARLY = """
import runpy, sys
from importlib.metadata import entry_points
class Interrupting:
    def find_spec(self, name, *_):
        if name == "sidestep.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
if sys.argv[1] == "script":
    (script,) = entry_points(group="console_scripts", name="sidestep")
    script.load()()
else:
    runpy.run_module("sidestep", run_name="__main__")
"""


@pytest.mark.parametrize("start", ["script", "module"])
def test_an_interrupt_before_the_command_begins_is_one_word(start: str) -> None:
    assert shell("-c", INTERRUPTED_EARLY, start, code=130).stderr == "interrupted\n"


def shell(*arguments: object, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=os.environ | environment
    )
    assert code is None or result.returncode == code, result.stderr
    return result


COMPLETE = "from sidestep.cli import main; import sys; sys.argv[0] = 'sidestep'; main()"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sidestep tr", {"train"}),
        ("sidestep view --traj", {"--trajectory"}),
        ("sidestep view --trajectory dolly", {"dolly", "dolly-zoom"}),
        ("sidestep view a.jpg --category so", {"sofa"}),
        ("sidestep view a.jpg --fusion ", {"auto", "variance", "addition"}),
        ("sidestep capture ", {"inspect", "import"}),
    ],
)
def test_the_shell_completes_commands_options_and_values(typed: str, offered: set[str]) -> None:
    words = typed.split(" ")
    bash = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    told = shell("-c", COMPLETE, _SIDESTEP_COMPLETE="complete_bash", **bash).stdout.split()
    assert set(told) == offered
    told = shell("-c", COMPLETE, _SIDESTEP_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=typed).stdout
    assert all(word in told for word in offered)


def test_a_slip_is_answered_with_a_suggestion() -> None:
    assert "Did you mean 'view'" in shell("-m", "sidestep", "veiw", code=2).stderr
    told = shell("-m", "sidestep", "view", "a.jpg", "--out", "b.png", "--yawn", "3", code=2, COLUMNS="200")
    assert "--yaw" in told.stderr.replace("--yawn", "")
    assert told.stdout == ""


def test_a_reader_that_has_gone_away_is_no_error() -> None:
    command = f"'{sys.executable}' -m sidestep --help | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ended.stderr == ""
    assert ended.returncode in (0, 1)


def on_a_terminal(*arguments: object, **environment: str) -> str:
    """What a person would see."""
    here, there = pty.openpty()
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=there, stdout=there, stderr=there, env=os.environ | {"TERM": "xterm", **environment}
    )
    os.close(there)
    seen = b""
    try:
        while part := os.read(here, 4096):
            seen += part
    except OSError:  # how Linux says that nobody writes any more
        pass
    os.close(here)
    process.wait()
    return seen.decode()


# A command that fails while it imports what it needs: that is, without the seconds that importing torch takes.
FAILING = """
import sys
from sidestep.errors import SidestepError
class Failing:
    def find_spec(self, name, *_):
        if name == "sidestep.config":
            raise SidestepError("absent.yaml: no such file")
sys.meta_path.insert(0, Failing())
from sidestep.cli import main
main()
"""


def test_a_terminal_gets_colours_and_a_sign_of_life_and_a_file_neither() -> None:
    command = ("-c", FAILING, "train", "absent.yaml")
    seen = on_a_terminal(*command)
    assert seen.index("starting") < seen.index("absent.yaml: no such file")
    assert "\x1b[1;31merror: " in seen
    quiet = on_a_terminal(*command, "--quiet", NO_COLOR="1")
    assert "starting" not in quiet
    assert "\x1b[1;31m" not in quiet
    told = shell(*command, code=1)
    assert told.stderr == "error: absent.yaml: no such file\n"
    assert told.stdout == ""


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stages = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    vae = AutoencoderTiny(**stages, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=4)
    sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 8}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (32,)}
    path = tmp_path_factory.mktemp("prior")
    LatentPrior(vae, UNet2DModel(**sizes, **blocks), DDPMScheduler()).save_pretrained(path)
    return path


@pytest.fixture
def interrupted(sidestep: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command, and presses Ctrl-C when it has written half of its second file of tensors."""
    save = safetensors.torch.save_file

    def run(*arguments: object) -> int:
        written = []

        def save_file(tensors: object, path: Path, **options: Any) -> None:
            written.append(path)
            if len(written) == 2:
                path.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGINT)
            save(tensors, path, **options)

        with monkeypatch.context() as patch:
            patch.setattr("safetensors.torch.save_file", save_file)
            return sidestep(*arguments)

    return run


def test_interrupted_work_leaves_nothing_broken_and_goes_on(
    sidestep: Command, interrupted: Command, capsys: pytest.CaptureFixture[str], prior: Path, tmp_path: Path
) -> None:
    def check_interrupt() -> None:
        assert capsys.readouterr().err.splitlines()[-1] == "interrupted; run the same command again to go on"
        assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]

    store, run = tmp_path / "store", tmp_path / "run"
    encode = ("encode", FURNITURE, "--prior", prior, "--out", store, "--steps", 2, "--scenes-per-shard", 1)
    assert interrupted(*encode) == 130
    check_interrupt()
    (shard,) = store.glob("*.safetensors")
    first = shard.stat().st_mtime_ns
    assert sidestep(*encode, "--json") == 0
    assert json.loads(capsys.readouterr().out)["scenes"] == 3
    assert shard.stat().st_mtime_ns == first  # what was done is not done again

    tunet = {"block_out_channels": [32, 32], "down_layers": 1, "up_layers": 2, "attention_levels": 1, "head_dim": 16}
    tunet |= {"cross_attention_dim": 32, "time_embed_dim": 32}
    settings = {"latents": str(store), "out": str(run), "size": "small", "tunet": tunet, "pairs": "any"}
    settings |= {"steps": 3, "batch_size": 2, "precision": "fp32", "save_every": 1}
    scenes = read_captures(FURNITURE)
    write_split(tmp_path / "split.json", {"train": scenes[:2], "val": scenes[2:], "test": []})
    settings["split"] = str(tmp_path / "split.json")
    (tmp_path / "tunet.yaml").write_text(json.dumps(settings))  # JSON is YAML
    assert interrupted("train", tmp_path / "tunet.yaml") == 130
    check_interrupt()
    assert sidestep("train", tmp_path / "tunet.yaml") == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 3
    assert (run / "model" / "tunet" / "config.json").exists()
