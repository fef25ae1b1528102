"""Libraries that come with an extra."""

from __future__ import annotations

_EXTRAS = {
    "train": (
        "docstring_parser", "filelock", "jinja2", "jsonargparse", "librosa", "lightning", "matplotlib", "pandas", "PIL",
        "rich", "safetensors", "scipy", "shtab", "sklearn", "soundfile", "tensorboard", "torchmetrics", "yaml",
    ),
    "media": ("av",),
    "sweep": ("optuna", "ray"),
    "hf": ("accelerate", "tokenizers", "transformers"),
    "hdf5": ("h5py",),
    "timm": ("timm", "torchvision"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
}  # fmt: skip


def missing_extra(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Add the command that installs a library of an extra; other errors stay as they are.

    Example:
        >>> print(missing_extra(ModuleNotFoundError("No module named 'av'", name="av")))
        av is not installed. Run: pip install "bmlr[media]"
    """
    module = (error.name or "").partition(".")[0]
    for extra, modules in _EXTRAS.items():
        if module in modules and "pip install" not in str(error):
            return ModuleNotFoundError(f'{module} is not installed. Run: pip install "bmlr[{extra}]"', name=error.name)
    return error
