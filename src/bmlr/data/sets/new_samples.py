"""New samples to predict, as a user names their files."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bmlr._checks import nearest_name
from bmlr.data._base import Modality
from bmlr.data.readers._text import is_text
from bmlr.data.readers.suffixes import FILE_KINDS, MODALITY_KINDS
from bmlr.data.sets._table_files import csv_records, find_file


@dataclasses.dataclass(frozen=True)
class NewSample:
    """Files of a new sample.

    Attributes:
        name: Its name in a table of predictions.
        files: A file per modality, or a text itself.
    """

    name: str
    files: Mapping[str, Path | str]


def list_new_samples(arguments: Sequence[str], modalities: Mapping[str, Modality]) -> list[NewSample]:
    """Make samples of files, folders and tables.

    A table (CSV) has a row per sample and a column per modality, as in training; ``id`` names the samples, other
    columns are left unread. Files, also those of a folder, are one sample if no two are of one modality; else those of
    one modality are a sample each, and those of several are samples by their names without suffix.

    Args:
        arguments: Paths, MODALITY=PATH, or MODALITY=TEXT.
        modalities: Modalities of the model.

    Raises:
        FileNotFoundError: If a table is missing.
        ValueError: If the modality of a file cannot be told, or a table has no column of a modality.

    Example:
        >>> forms = {"voice": Modality("spectrogram", (1, 24, 25)), "photo": Modality("image", (3, 16, 16))}
        >>> [sample.name for sample in list_new_samples(["b.wav", "a.wav", "a.png", "b.png"], forms)]
        ['b', 'a']
        >>> list_new_samples(["spoken.wav", "written.png"], forms)[0].files["photo"].name
        'written.png'
    """
    samples: list[NewSample] = []
    files: list[tuple[str, Path | str]] = []
    for text in arguments:
        name, separator, rest = text.partition("=")
        stated = name if separator and name in modalities else None
        if stated is not None and modalities[stated].kind == "text" and is_text(rest):
            files.append((stated, rest))
            continue
        path = Path(rest if stated else text).expanduser()
        if stated is None and path.suffix.lower() in {".csv", ".tsv"}:
            samples += _samples_of_table(path, modalities)
        elif stated is None and path.is_dir():
            samples += _group(_files_of_folder(path, modalities))
        else:
            files.append((stated or _modality_of(path, modalities), path))
    return [*samples, *_group(files)]


def _samples_of_table(path: Path, modalities: Mapping[str, Modality]) -> list[NewSample]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no table {path}.")
    head, *rows = csv_records(path.read_bytes(), path) or [[]]
    names = [cell.partition(":")[0].strip() for cell in head]
    if not set(names) & set(modalities):
        raise ValueError(
            f"{path} should have columns of files named {', '.join(modalities)}. Found {', '.join(names) or 'none'}."
        )
    samples = []
    for number, cells in enumerate(rows, 2):
        if any(cells):
            row = dict(zip(names, cells, strict=False))
            files = {
                name: _file_of_cell(row[name], path.parent, form) for name, form in modalities.items() if row.get(name)
            }
            samples.append(NewSample(row.get("id") or f"row-{number}", files))
    return samples


def _file_of_cell(cell: str, folder: Path, form: Modality) -> Path | str:
    if form.kind == "text" and is_text(cell):
        return cell
    found = find_file(cell, folder)
    return found if isinstance(found, Path) else folder / cell  # its reader says what is wrong


def _files_of_folder(folder: Path, modalities: Mapping[str, Modality]) -> Iterable[tuple[str, Path]]:
    """Files of a folder whose modality is told by their suffix."""
    files = [
        (candidates[0], path)
        for path in sorted(folder.iterdir())
        if path.is_file() and len(candidates := _candidates(path, modalities)) == 1
    ]
    if not files:
        raise ValueError(f"{folder} should hold files of {', '.join(modalities)}. By their names it has none.")
    return files


def _modality_of(path: Path, modalities: Mapping[str, Modality]) -> str:
    candidates = _candidates(path, modalities)
    if len(candidates) != 1:
        name = path.name.partition("=")[0]
        raise ValueError(
            f"`files`: cannot tell the modality of {path} by its name. Write MODALITY={path} with one of "
            f"{', '.join(modalities)}.{nearest_name(name, modalities) if '=' in path.name else ''}"
        )
    return candidates[0]


def _candidates(path: Path, modalities: Mapping[str, Modality]) -> list[str]:
    """Modalities a file may be of: by its suffix, an array also by its name."""
    if path.stem in modalities and FILE_KINDS.get(path.suffix.lower()) == "array":
        return [path.stem]
    kind = FILE_KINDS.get(path.suffix.lower(), "")
    fitting = [name for name, form in modalities.items() if form.kind in MODALITY_KINDS.get(kind, ())]
    if kind == "video" and not fitting:  # a video is read for its sound
        return [name for name, form in modalities.items() if form.kind == "spectrogram"]
    return fitting


def _group(files: Iterable[tuple[str, Path | str]]) -> list[NewSample]:
    """Samples of files of known modality."""
    files = list(files)
    counts = collections.Counter(name for name, _ in files)
    if len(counts) == 1:
        return [NewSample(str(path), {name: path}) for name, path in files]
    if all(count == 1 for count in counts.values()):
        named = next((path.stem for _, path in files if isinstance(path, Path)), "1")
        return [NewSample(named, dict(files))] if files else []
    groups: dict[str, dict[str, Path | str]] = {}
    for name, path in files:
        group = groups.setdefault(Path(path).stem, {})
        if name in group:
            raise ValueError(
                f"`files` should have one file of '{name}' per sample. Found {group[name]} and {path}. Give samples "
                "whose files have one name each, or a table (CSV)."
            )
        group[name] = path
    return [NewSample(stem, group) for stem, group in groups.items()]
