"""CREMA-D."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from bmlr.data._base import SplitName
from bmlr.data.sets._audiovisual import AudioVisualData
from bmlr.data.sets._lists import files_by_stem, find_folder, find_list_problem, read_lists
from bmlr.data.store._samples import SourceSample

_NAME = re.compile(r"([0-9]{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})")  # 1040_ITH_SAD_X has one letter at its end


class CREMAD(AudioVisualData):
    """CREMA-D: 7,442 clips of 91 actors in six emotions.

    Every clip is a spoken sentence (Cao et al., 2014). From the published ``AudioWAV`` and ``VideoFlash`` folders.
    Audio is 3 s long (257 × 188), video one frame per clip.

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

    @staticmethod
    def list_samples(source: Path, lists: Mapping[SplitName, Path]) -> list[SourceSample]:
        """Clips of the published folder.

        A clip is ``AudioWAV/<name>.wav`` with ``VideoFlash/<name>.flv``. The name gives actor, sentence, emotion and
        level: ``1041_TIE_NEU_XX``. The group is the actor.

        Args:
            source: Folder that holds ``AudioWAV`` and ``VideoFlash``.
            lists: Published lists by split: lines of name and label, separated by commas or spaces; a third field is
                not read. Without lists, clips have no published split. With lists, clips on none are rejected.

        Returns:
            The clips by name. A clip has a problem if its name is misformed, a file is missing, or it is listed twice,
            with another label or not at all.

        Raises:
            FileNotFoundError: If a folder or list is missing, or there are no clips.
            ValueError: If a list cannot be read.
        """
        wavs = files_by_stem(find_folder(source, "AudioWAV"), {".wav"})
        videos = files_by_stem(find_folder(source, "VideoFlash"), {".flv"})
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
                or (f"there is no {name}.flv in VideoFlash" if "video" not in files else None)
                or find_list_problem(entries, lists, emotion)
            )
            split = entries[0].split if entries else None
            samples.append(
                SourceSample(name, emotion, split, actor, files, {"sentence": sentence, "level": level}, problem)
            )
        return samples
