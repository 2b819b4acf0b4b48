"""What makes a model's folder loadable by `DiffusionPipeline.from_pretrained`: an index, and the code that it names."""

import json
from pathlib import Path

from sidestep.files import atomic_path, write_json

INDEX = "model_index.json"

# diffusers runs code of a model's folder only with trust_remote_code=True, and that of a component only from the
# component's own folder. These two files just name what is installed.
PIPELINE_FILE = "pipeline.py"
TUNET_FILE = "tunet/tunet.py"
PIPELINE_CODE = 'from sidestep import NovelViewPipeline\n\n__all__ = ["NovelViewPipeline"]\n'
TUNET_CODE = 'from sidestep import TUNet\n\n__all__ = ["TUNet"]\n'


def write_index(folder: str | Path) -> None:
    """Writes model_index.json, pipeline.py and tunet/tunet.py beside a whole model's parts, whose configs name classes.

    Args:
        folder: holds tunet/, vae/, unet/, scheduler/ and, where the prior takes prompts, text_encoder/ and tokenizer/.
    """
    from diffusers import __version__

    folder = Path(folder)
    index: dict[str, object] = {
        "_class_name": [Path(PIPELINE_FILE).stem, "NovelViewPipeline"],
        "_diffusers_version": __version__,
        "tunet": [Path(TUNET_FILE).stem, "TUNet"],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
    }
    for part in ("vae", "unet"):
        index[part] = ["diffusers", _read(folder / part / "config.json")["_class_name"]]
    index["scheduler"] = ["diffusers", _read(folder / "scheduler" / "scheduler_config.json")["_class_name"]]
    if (folder / "text_encoder").is_dir():
        index["text_encoder"] = ["transformers", _read(folder / "text_encoder" / "config.json")["architectures"][0]]
        index["tokenizer"] = ["transformers", _read(folder / "tokenizer" / "tokenizer_config.json")["tokenizer_class"]]
    for name, code in ((PIPELINE_FILE, PIPELINE_CODE), (TUNET_FILE, TUNET_CODE)):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(code, encoding="utf-8")
    write_json(folder / INDEX, dict(sorted(index.items())))


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
