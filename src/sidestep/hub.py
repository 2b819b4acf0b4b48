"""Models on the Hugging Face hub: what is uploaded beside the weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CARD = """---
library_name: diffusers
pipeline_tag: image-to-image
tags:
- novel-view-synthesis
- sidestep
---

# {name}

Novel views of a scene from one photo, by [DDIM inversion](https://arxiv.org/abs/2508.10688). With Sidestep installed:

```python
from sidestep import Camera, NovelViewPipeline, orbit

pipe = NovelViewPipeline.from_pretrained("{repo_id}")
views = pipe("photo.jpg", orbit(Camera.from_fov(45, 1024, 768), 8))
```

or, as any diffusers pipeline with code of its own:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)
```

The weights are safetensors. What the model was trained on, how good it is and its licence are not known to the program
that wrote this card: please add them.
"""


def push_folder(
    folder: Path,
    repo_id: str,
    parts: Sequence[str],
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> Any:
    """Uploads a model and its card, making the repository where there is none.

    Where the repository has a README.md, that stays. Else the folder's own goes along; where there is none either, one
    that says how to load the model is written.

    Args:
        folder: what `NovelViewPipeline.save_pretrained` wrote.
        repo_id: "owner/name", or "name" in one's own namespace.
        parts: the names in `folder` that are the model's; nothing else is uploaded.
        private, token, commit_message, create_pr: as in `DiffusionPipeline.push_to_hub`.

    Returns:
        huggingface_hub's CommitInfo.
    """
    import huggingface_hub

    repo_id = huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    uploaded = [*parts, *(f"{part}/*" for part in parts)]
    if not huggingface_hub.file_exists(repo_id, "README.md", token=token):
        card = folder / "README.md"
        uploaded.append(card.name)
        if not card.is_file():
            card.write_text(CARD.format(name=repo_id.split("/")[-1], repo_id=repo_id), encoding="utf-8")
    return huggingface_hub.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=uploaded,
        token=token,
        commit_message=commit_message or "Upload NovelViewPipeline",
        create_pr=create_pr,
    )
