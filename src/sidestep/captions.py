"""What a photo shows, told by BLIP: the words that a prompt builds on (the paper, appendix on text editing)."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from sidestep.devices import choose_device
from sidestep.errors import SidestepError
from sidestep.images import load_image, resize_and_crop

BLIP = "Salesforce/blip-image-captioning-base"
# The main branch holds pickles alone. This commit of the hub's conversion bot adds the same weights as safetensors.
BLIP_REVISION = "9cfcdbcaccbcadb2b53b36d4b50042c4eeaa0c25"
DOWNLOAD = f'hf download {BLIP} --revision {BLIP_REVISION} --exclude "*.bin" --exclude "*.h5" --local-dir blip'


@torch.no_grad()
def caption(photo: Image.Image | str | Path, model: str | Path = BLIP, device: str | torch.device | None = None) -> str:
    """Describes the centre square of a photo, which is all of it that the pipeline sees.

    Decodes as BLIP's authors do for their figures: three beams, up to 20 tokens, nothing drawn at random.

    Args:
        photo: of any size.
        model: folder or hub id of a BLIP captioning model in transformers' layout, with its weights in safetensors.
        device: where to run; the best device present where None.

    Raises:
        SidestepError: if the photo cannot be read, or the model cannot be fetched, is of another class, or is damaged.
    """
    image = ImageOps.exif_transpose(photo) if isinstance(photo, Image.Image) else load_image(photo)
    square = resize_and_crop(image.convert("RGB"), min(image.size))
    place = choose_device(device)
    processor, blip = _load(str(model))
    pixels = processor(images=square, return_tensors="pt").pixel_values.to(place)
    tokens = blip.to(place).generate(pixels, num_beams=3, max_new_tokens=20, do_sample=False)
    # The first token only starts the sentence, and has no word in the tokenizer's vocabulary.
    return str(processor.decode(tokens[0, 1:], skip_special_tokens=True)).strip()


def _load(model: str) -> tuple[Any, Any]:
    """(processor, network in float32) of a folder or hub id, by transformers."""
    try:
        from transformers import AutoConfig, BlipForConditionalGeneration, BlipProcessor
    except ImportError:
        raise SidestepError("a caption needs transformers: pip install 'sidestep[text]'") from None
    advice = f"`{DOWNLOAD}` makes a folder, blip, to name instead"
    if not Path(model).is_dir() and (model.count("/") != 1 or model.startswith((".", "/"))):
        raise SidestepError(f"{model}: no such folder; {advice}")
    revision = BLIP_REVISION if model == BLIP else "main"
    try:
        # Asked first, so that a model of another kind is refused before its gigabytes are downloaded.
        kinds = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False).architectures
        if kinds != ["BlipForConditionalGeneration"]:
            raise SidestepError(f"{model} is {kinds}, not a BlipForConditionalGeneration; {advice}")
        processor = BlipProcessor.from_pretrained(model, revision=revision)
        blip, found = BlipForConditionalGeneration.from_pretrained(
            model, revision=revision, use_safetensors=True, output_loading_info=True
        )
    except SidestepError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise SidestepError(f"{model}: BLIP cannot be loaded ({reason}); {advice}") from error
    # Where files or weights are missing, transformers makes up a tokenizer without words and random weights.
    if found["missing_keys"]:
        raise SidestepError(f"{model}: {len(found['missing_keys'])} of BLIP's weights are missing; {advice}")
    known, spoken = len(processor.tokenizer), blip.config.text_config.vocab_size
    if 2 * known < spoken:
        raise SidestepError(f"{model}: the tokenizer knows {known} of BLIP's {spoken} tokens; {advice}")
    return processor, blip.float().eval()
