"""Downloads `id@revision`, a snapshot of a Hugging Face repository: safetensors and text only."""

from __future__ import annotations

import re
from pathlib import Path

from stepscore.errors import NotFound

_REPOSITORY = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?", re.ASCII)


def download(source: str) -> tuple[str, str, Path]:
    """Download the files of a checkpoint; return the repository id, the commit hash and the folder.

    Without `@revision` it is the default branch. Offline, an earlier download is used.
    """
    match = _REPOSITORY.fullmatch(source)
    if match is None:
        raise NotFound(f"no folder at {source}", hint="pass a Hugging Face folder or `id@revision`")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - a local folder needs no hub client

    try:
        folder = snapshot_download(
            match["id"],
            revision=match["revision"],
            allow_patterns=["*.safetensors", "*.json", "*.jinja"],
            ignore_patterns=["*/*"],
        )
    except (OSError, ValueError) as error:  # all errors of the hub client derive from these
        reason = str(error).strip().partition("\n")[0]
        raise NotFound(
            f"{source} is not a local folder, and cannot be downloaded: {reason}",
            hint="check the id, the revision and the network; a gated repository needs `hf auth login`",
        ) from None
    return match["id"], Path(folder).name, Path(folder)
