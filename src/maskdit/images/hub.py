"""Files on the Hugging Face Hub by its own client: with the user's cache, mirror (HF_ENDPOINT), token and offline mode."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from maskdit.artifacts.atomic import replacing, sha256
from maskdit.config.base import UserError
from maskdit.runtime.progress import say

ADDRESS = re.compile(r"https://huggingface\.co/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w./-]+)")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at a revision. kind: model or dataset."""

    kind: str
    repo: str
    revision: str
    name: str

    @classmethod
    def at(cls, url: str) -> Self | None:
        """The file at an address of the hub; None for other addresses."""
        found = ADDRESS.fullmatch(url)
        return cls("dataset" if found[1] else "model", *found.groups()[1:]) if found else None

    def kept(self) -> Path | None:
        """Where the user's cache has the file; None if it does not. Raises UserError for a name that the hub cannot have."""
        from huggingface_hub import try_to_load_from_cache

        try:
            found = try_to_load_from_cache(self.repo, self.name, revision=self.revision, repo_type=self.kind)
        except ValueError as error:
            raise UserError(f"{self}: {error}") from None
        return Path(found).resolve() if isinstance(found, str) else None

    def cached(self, again: bool = False) -> Path:
        """The file in the user's cache, into which it is downloaded if it is not there, or `again`.

        Raises UserError if that fails, and in the offline mode.
        """
        from huggingface_hub import hf_hub_download, is_offline_mode
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the library that this release uses
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if is_offline_mode() and (again or not self.kept()):
            advice = f"where there is a network, run hf download {self.repo} {self.name} --revision {self.revision}"
            raise UserError(f"{self}: HF_HUB_OFFLINE is set, and the cache has no intact copy; {advice}")
        disable_progress_bars()
        try:
            found = hf_hub_download(
                self.repo, self.name, revision=self.revision, repo_type=self.kind, force_download=again, library_name="maskdit"
            )
        except (OSError, HTTPError, ValueError) as error:
            if isinstance(error, OSError) and error.errno:  # of the disk
                raise
            why = " ".join(str(error.__cause__ or error).split())
            raise UserError(
                f"{self}: {why[:400]}; check the network, HF_ENDPOINT and, for a gated repository, HF_TOKEN, then run it again"
            ) from None
        return Path(found).resolve()

    def take(self, path: Path, wanted: str | None) -> str:
        """Copy the file to `path` and return its sha256; raises UserError unless that is `wanted`.

        The cache names a large file by its sha256: one that has been damaged there is downloaded again.
        """
        if not self.kept():
            say(f"download: {self} into the cache of the Hugging Face Hub")
        source = self.cached()
        found = sha256(source)
        if re.fullmatch("[0-9a-f]{64}", source.name) and found != source.name:
            say(f"download: {source} is damaged; getting it again")
            source = self.cached(again=True)
            found = sha256(source)
        if wanted not in (None, found):
            raise UserError(f"{self}: has sha256 {found}, not {wanted}; correct the sha256 or the url")
        with replacing(path, source.stat().st_size) as temporary:
            shutil.copyfile(source, temporary)
        return found

    def __str__(self) -> str:
        return f"{self.name} of {self.repo}"
