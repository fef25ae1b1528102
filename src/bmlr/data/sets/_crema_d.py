"""CREMA-D."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from bmlr.data._base import SplitName
from bmlr.data.sets._audiovisual import AudioVisualData
from bmlr.data.sets._lists import files_by_stem, find_folder, find_list_problem, read_lists
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._samples import SourceSample

_NAME = re.compile(r"([0-9]{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})")  # 1040_ITH_SAD_X has one letter at its end
_IMAGES = re.compile(r"Image-0*[1-9][0-9]*-FPS")  # the number is that of images per second


class CREMAD(AudioVisualData):
    """CREMA-D: 7,442 clips of 91 actors in six emotions.

    Every clip is a spoken sentence (Cao et al., 2014). From the published ``AudioWAV`` and ``VideoFlash`` folders, or
    with frames extracted to ``Image-01-FPS`` in place of the latter. Audio is 3 s long (257 × 188), video one frame per
    clip.

    * ``protocol="clean"``: every actor is in one split.
    * ``protocol="paper"``: the published lists, given to the preparation; all actors are in both splits. They have no
      validation split, so that ``val_fraction`` of the training clips are drawn for it, of all classes alike.

    See :class:`~bmlr.data.sets._audiovisual.AudioVisualData` for the parameters.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("crema-d", root="prepared")  # reads no file yet
        >>> data.modalities["audio"].shape, data.classes
        ((1, 257, 188), ('NEU', 'HAP', 'SAD', 'FEA', 'DIS', 'ANG'))
    """

    name: ClassVar[str] = "crema-d"
    published_classes: ClassVar[tuple[str, ...]] = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
    usual_frames: ClassVar[int] = 1
    usual_seconds: ClassVar[float] = 3.0

    @classmethod
    def convert(cls, source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
        """Decode the published folder into a store in ``dest``."""
        if (images := _find_images(source)) is not None and options.frame_rate is None:
            options = dataclasses.replace(options, frame_rate=float(images.name.split("-")[1]))
        return super().convert(source, dest, options)

    @staticmethod
    def list_samples(source: Path, lists: Mapping[SplitName, Path]) -> list[SourceSample]:
        """Clips of the published folder.

        A clip is ``AudioWAV/<name>.wav`` with ``VideoFlash/<name>.flv`` or, where there is no such folder, with the
        images ``Image-01-FPS/<name>/00000.jpg`` and so on. The name gives actor, sentence, emotion and
        level: ``1041_TIE_NEU_XX``. The group is the actor.

        Args:
            source: Folder that holds ``AudioWAV``, and ``VideoFlash`` or ``Image-01-FPS``.
            lists: Published lists by split: lines of name and label, separated by commas or spaces; a third field is
                not read. Without lists, clips have no published split. With lists, clips on none are rejected.

        Returns:
            The clips by name. A clip has a problem if its name is malformed, a file is missing, or it is listed twice,
            with another label or not at all.

        Raises:
            FileNotFoundError: If a folder or list is missing, or there are no clips.
            ValueError: If a list cannot be read.
        """
        wavs = files_by_stem(find_folder(source, "AudioWAV"), {".wav"})
        images = _find_images(source)
        if images is None:
            video_folder, suffix = find_folder(source, "VideoFlash"), ".flv"
            videos = files_by_stem(video_folder, {suffix})
        else:
            video_folder, suffix = images, ""
            videos = {path.name: [path] for path in sorted(images.iterdir()) if path.is_dir() and path.name[0] != "."}
        listed = read_lists(lists, label_field=1)
        samples = []
        for name in sorted({*wavs, *videos, *listed}):
            files = {m: paths[name][0] for m, paths in (("audio", wavs), ("video", videos)) if name in paths}
            match = _NAME.fullmatch(name)
            entries = listed.get(name, [])
            actor, sentence, emotion, level = match.groups() if match else ("", "", "", "")
            problem = (
                (None if match else "its name should be actor_sentence_emotion_level, as 1041_TIE_NEU_XX")
                or (f"there is no {name}.wav in AudioWAV" if "audio" not in files else None)
                or (f"there is no {name}{suffix} in {video_folder.name}" if "video" not in files else None)
                or find_list_problem(entries, lists, emotion)
            )
            split = entries[0].split if entries else None
            samples.append(
                SourceSample(name, emotion, split, actor, files, {"sentence": sentence, "level": level}, problem)
            )
        return samples


def _find_images(source: Path) -> Path | None:
    """Folder of extracted frames, where it stands in place of the videos."""
    if (source / "VideoFlash").is_dir():
        return None
    folders = [path for path in source.glob("Image-*-FPS") if path.is_dir() and _IMAGES.fullmatch(path.name)]
    return min(folders, default=None)
