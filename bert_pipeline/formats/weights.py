"""The weights of a Hugging Face model directory: safetensors only, because a pickle can execute code."""

from pathlib import Path


class WeightsError(ValueError):
    """The directory has no weights that can be read."""


def weight_files(folder: Path) -> list[Path]:
    """Return the *.safetensors files of a model. Raises WeightsError if there are none."""
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    if pickles := sorted(folder.glob("pytorch_model*.bin")):
        raise WeightsError(
            f"{folder} has its weights in {pickles[0].name}, a pickle, which can execute code, and no *.safetensors; "
            f"remedy: convert it with these two lines of Python:\n{_conversion(folder)}"
        )
    raise WeightsError(f"{folder} has no *.safetensors; remedy: save the model with safetensors")


def _conversion(folder: Path) -> str:
    """Two lines that write model.safetensors. `weights_only` runs no code of the pickle; clones untie tied weights."""
    return (
        "import pathlib, torch, safetensors.torch as st; folder = pathlib.Path("
        f"{str(folder)!r}); files = sorted(folder.glob('pytorch_model*.bin'))\n"
        "st.save_file({name: tensor.clone() for file in files for name, tensor in "
        "torch.load(file, map_location='cpu', weights_only=True).items()}, folder / 'model.safetensors', "
        "{'format': 'pt'})"
    )
