"""What makes a model's folder loadable by `DiffusionPipeline.from_pretrained`: an index, and the code that it names."""

import json
from pathlib import Path

import diffusers

from sidestep.files import atomic_path, write_json
from sidestep.prior_folder import TEXT_PARTS

INDEX = "model_index.json"

# diffusers runs code of a model's folder only with trust_remote_code=True, and that of a component only from the
# component's own folder. These files just name what is installed.
PIPELINE_FILE = "pipeline.py"
TUNET_FILE = "tunet/tunet.py"
PIPELINE_CODE = 'from sidestep import NovelViewPipeline\n\n__all__ = ["NovelViewPipeline"]\n'
EMPTY_PROMPT_FILE = "empty_prompt/empty_prompt.py"
EMPTY_PROMPT_CODE = 'from sidestep.prompts import EmptyPrompt\n\n__all__ = ["EmptyPrompt"]\n'
TUNET_CODE = 'from sidestep import TUNet\n\n__all__ = ["TUNet"]\n'


def write_index(folder: str | Path) -> None:
    """Writes model_index.json, pipeline.py and tunet/tunet.py beside a whole model's parts, whose configs name classes.

    Args:
        folder: holds tunet/ and the prior's parts: vae/, unet/, scheduler/ and, where the U-Net attends to a prompt,
            text_encoder/ and tokenizer/ (SDXL's: text_encoder_2/ and tokenizer_2/ too), empty_prompt/, or both.
    """
    folder = Path(folder)
    index: dict[str, object] = {
        "_class_name": [Path(PIPELINE_FILE).stem, "NovelViewPipeline"],
        "_diffusers_version": diffusers.__version__,
        "tunet": [Path(TUNET_FILE).stem, "TUNet"],
        **{part: [None, None] for part in (*TEXT_PARTS, "empty_prompt")},
    }
    for part in ("vae", "unet"):
        index[part] = ["diffusers", _read(folder / part / "config.json")["_class_name"]]
    index["scheduler"] = ["diffusers", _read(folder / "scheduler" / "scheduler_config.json")["_class_name"]]
    for part in TEXT_PARTS:
        if not (folder / part).is_dir():
            continue
        if part.startswith("tokenizer"):
            named = _read(folder / part / "tokenizer_config.json")["tokenizer_class"]
        else:
            named = _read(folder / part / "config.json")["architectures"][0]
        index[part] = ["transformers", named]
    codes = {PIPELINE_FILE: PIPELINE_CODE, TUNET_FILE: TUNET_CODE}
    if (folder / "empty_prompt").is_dir():
        index["empty_prompt"] = [Path(EMPTY_PROMPT_FILE).stem, "EmptyPrompt"]
        codes[EMPTY_PROMPT_FILE] = EMPTY_PROMPT_CODE
    for name, code in codes.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(code, encoding="utf-8")
    write_json(folder / INDEX, dict(sorted(index.items())))


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
