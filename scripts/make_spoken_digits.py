"""Make the spoken digits that the data set ``digits`` is shipped with, by eSpeak NG.

Writes ``spoken_digits.flac`` (all clips, one after another) and ``spoken_digits.json`` (where each clip is and what
is said by whom) to ``src/bmlr/data/_assets``. The same eSpeak NG and the same seed give the same files.

    python scripts/make_spoken_digits.py [FOLDER]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile

SEED = 0
SAMPLE_RATE = 8000
LONGEST = 6000  # samples: 0.75 s, the clip of the data set
CLIPS_PER_DIGIT = 2  # of every variant, in different accents
BITS = 7  # rounding error some 30 dB below the speech, as on a telephone line; 16 bits take four times the space
PARTS = ("train", "val", "test")
SHARES = (0.6, 0.2, 0.2)

# Voice files below eSpeak's own folder: languages would be looked up among all voices, and "en-gb+m1" loses its "+m1".
# Not en-US-nyc, which says the digits as en-US does.
ACCENTS = ("en", "en-US", "en-029", "en-GB-scotland", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-GB-x-rp")
PLAIN = "plain"  # the accent's own voice, without a variant

# Variants of one author that differ in little else than pitch or echo; never in two splits.
FAMILIES = (
    ("Alex", "Mike", "m3", PLAIN),
    ("Andy", "AnxiousAndy", "Lee"),
    ("Diogo", "Henrique", "Hugo", "michel", "miguel", "Marco"),
    ("Mario", "Michael", "gustave", "marcelo"),
    ("RicishayMax", "RicishayMax2", "RicishayMax3", "max", "robosoft7", "robosoft8", "paul"),
    ("aunty", "belinda", "linda", "f4"),
    ("klatt", "klatt2", "klatt3", "klatt4", "klatt5", "adam", "benjamin", "edward", "edward2", "david"),
    ("m7", "m8", "Nguyen", *(f"robosoft{n}" for n in ("", 2, 3, 4, 5, 6))),
    ("quincy", "rob", "robert"),
    ("sandro", "victor", "Storm"),
    ("whisper", "whisperf"),
    ("anika", "anikaRobot"),
)
# "fast" changes the speed only; "caleb" and "klatt6" give the samples of "klatt".
LEFT_OUT = {"fast", "caleb", "klatt6"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """What is said and how.

    Attributes:
        digit: The digit.
        accent: Voice file of the accent.
        variant: Voice variant, the speaker's timbre.
        speed: Words per minute.
        pitch: eSpeak's pitch, from 0 to 99.
    """

    digit: int
    accent: str
    variant: str
    speed: int
    pitch: int

    @property
    def voice(self) -> str:
        """Accent and variant in eSpeak's notation, without the folder."""
        return self.accent if self.variant == PLAIN else f"{self.accent}+{self.variant}"

    @property
    def command(self) -> list[str]:
        """The command that says it."""
        espeak = shutil.which("espeak-ng")
        if espeak is None:
            raise SystemExit("espeak-ng is not installed.")
        options = ["-v", f"gmw/{self.voice}", "-s", str(self.speed), "-p", str(self.pitch)]
        return [espeak, *options, "--stdout", str(self.digit)]


def say(clip: Clip) -> np.ndarray:
    """Samples at 8 kHz, without the silence around, loudest at 0.9, in 2^BITS steps."""
    said = subprocess.run(clip.command, check=True, capture_output=True)  # noqa: S603
    if said.stderr:
        raise SystemExit(f"{' '.join(clip.command)}: {said.stderr.decode()}")
    wave, rate = soundfile.read(io.BytesIO(said.stdout), dtype="float32")
    wave = librosa.resample(wave, orig_sr=rate, target_sr=SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    wave = wave[loud[0] : loud[-1] + 1][:LONGEST]
    fade = min(80, len(wave))  # 10 ms, lest a cut or trimmed end click
    wave[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    levels: np.ndarray = np.round(0.9 * wave / np.abs(wave).max() * 2 ** (BITS - 1))
    return levels.astype(np.int8)


def find_variants() -> list[str]:
    """All voice variants of the installed eSpeak NG but those left out, sorted."""
    espeak = shutil.which("espeak-ng") or "espeak-ng"
    version = subprocess.run([espeak, "--version"], check=True, capture_output=True, text=True)  # noqa: S603
    folder = Path(version.stdout.split("Data at:")[1].strip()) / "voices" / "!v"
    return sorted({PLAIN} | {file.name for file in folder.iterdir()} - LEFT_OUT)


def espeak_version() -> str:
    """Version number of the installed eSpeak NG."""
    espeak = shutil.which("espeak-ng") or "espeak-ng"
    said = subprocess.run([espeak, "--version"], check=True, capture_output=True, text=True).stdout  # noqa: S603
    return str(re.findall(r"text-to-speech: (\S+)", said)[0])


def family_of(variant: str) -> str:
    """First of the variants that are never in another split than this one."""
    for family in FAMILIES:
        if variant in family:
            return family[0]
    numbered = re.fullmatch(r"([A-Za-z]{2,})\d", variant)
    return numbered[1] if numbered else variant


def split_families(variants: list[str], rng: np.random.Generator) -> dict[str, str]:
    """Part of every variant: whole families, until a split has its share of the variants."""
    families = sorted({family_of(variant) for variant in variants})
    members = {family: [v for v in variants if family_of(v) == family] for family in families}
    shuffled = sorted((families[i] for i in rng.permutation(len(families))), key=lambda f: -len(members[f]))
    counts = dict.fromkeys(PARTS, 0)
    split_of: dict[str, str] = {}
    for family in shuffled:  # largest first, each to the split that lacks most of its share
        split = max(PARTS, key=lambda p: SHARES[PARTS.index(p)] - counts[p] / len(variants))
        counts[split] += len(members[family])
        split_of |= dict.fromkeys(members[family], split)
    return split_of


def choose_clips(variants: list[str], rng: np.random.Generator) -> list[Clip]:
    """The clips of all variants, each digit in different accents at speeds and pitches of its own."""
    return [
        Clip(digit, ACCENTS[accent], variant, int(rng.integers(140, 231)), int(rng.integers(25, 76)))
        for variant in variants
        for accent in rng.choice(len(ACCENTS), CLIPS_PER_DIGIT, replace=False)
        for digit in range(10)
    ]


def check_distinct(variants: list[str]) -> None:
    """Stop if two variants give the same samples: they would be one speaker under two names."""
    first: dict[str, str] = {}
    for variant in variants:
        for accent in ("en", "en-US"):
            digest = hashlib.sha256(say(Clip(7, accent, variant, 175, 50)).tobytes()).hexdigest()
            if first.setdefault(digest, variant) != variant:
                raise SystemExit(f"The variants {first[digest]} and {variant} sound alike: leave one out.")


def write(folder: Path, clips: list[Clip], waves: list[np.ndarray], split_of: dict[str, str]) -> None:
    """Write the recording and its index."""
    soundfile.write(
        folder / "spoken_digits.flac",
        np.concatenate(waves).astype(np.int16) << (16 - BITS),  # libsndfile takes 16 bits and keeps the upper 8
        SAMPLE_RATE,
        subtype="PCM_S8",
        compression_level=1.0,
    )
    lengths = [len(wave) for wave in waves]
    voices = sorted({clip.voice for clip in clips})
    variant_of = {clip.voice: clip.variant for clip in clips}
    index: dict[str, Any] = {
        "made_by": f"eSpeak NG {espeak_version()}, scripts/make_spoken_digits.py, seed {SEED}",
        "sample_rate": SAMPLE_RATE,
        "voices": {voice: split_of[variant_of[voice]] for voice in voices},
        "start": [sum(lengths[:i]) for i in range(len(lengths))],
        "length": lengths,
        "digit": [clip.digit for clip in clips],
        "voice": [voices.index(clip.voice) for clip in clips],
        "speed": [clip.speed for clip in clips],
        "pitch": [clip.pitch for clip in clips],
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in index.items())
    (folder / "spoken_digits.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def main() -> None:
    """Make the files and say how large they are."""
    parser = argparse.ArgumentParser(description="Make the spoken digits by eSpeak NG.")
    default = Path(__file__).parent.parent / "src" / "bmlr" / "data" / "_assets"
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    variants = find_variants()
    check_distinct(variants)
    split_of = split_families(variants, rng)
    clips = choose_clips(variants, rng)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waves = list(pool.map(say, clips))
    write(folder, clips, waves, split_of)
    for split in PARTS:
        of_part = [clip for clip in clips if split_of[clip.variant] == split]
        print(
            f"{split}: {len(of_part)} clips, {len({c.voice for c in of_part})} voices, "
            f"{len({c.variant for c in of_part})} variants"
        )
    seconds = np.array([len(wave) for wave in waves]) / SAMPLE_RATE
    print(
        f"seconds: {seconds.sum():.0f} in all, {np.median(seconds):.2f} in the median, "
        f"{np.mean(seconds >= LONGEST / SAMPLE_RATE):.1%} cut at {LONGEST / SAMPLE_RATE}"
    )
    print(f"bytes: {sum(file.stat().st_size for file in folder.glob('spoken_digits.*'))}")


if __name__ == "__main__":
    main()
