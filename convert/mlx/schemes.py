"""The quantizations of MLX by name, and the packing of each weight. It imports no MLX.

The rules are those of mlx-lm (convert.py: mixed_quant_predicate_builder; utils.py: quantize_model;
models/qwen3_moe.py: quant_predicate), so that each weight is packed as `mlx_lm.convert` would pack it.
"""

from __future__ import annotations

from dataclasses import dataclass

from localqwen.errors import ConversionError, UsageError

BITS = (2, 3, 4, 5, 6, 8)
#: What `--bits` says of a plain copy.
WHOLE = 16
GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64
#: mx.quantize's modes beside affine: each has one group size and one number of bits.
FIXED_MODES = {"mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
MODES = ("affine", *FIXED_MODES)
#: mlx-lm's recipes: bits of most weights, bits of those that gain most from more.
RECIPES = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}


@dataclass(frozen=True)
class Packing:
    """How a weight is quantized: `group_size` columns of a row share a scale, each number takes `bits`."""

    group_size: int
    bits: int
    mode: str = "affine"


#: The router of a mixture of experts, whatever the mode of the others: it is small, and it decides everything.
ROUTER = Packing(group_size=64, bits=8)


@dataclass(frozen=True)
class Scheme:
    """A quantization: `usual` packs every weight that no rule singles out; None is a plain copy."""

    name: str
    usual: Packing | None
    recipe: str | None = None


def scheme(
    bits: int | None = None, group_size: int | None = None, mode: str = "affine", recipe: str | None = None
) -> Scheme:
    """Return the scheme of four flags; without bits, mode and recipe it is a plain copy.

    Raise UsageError for what mx.quantize does not have.
    """
    if recipe is not None:
        return _mixed(bits, group_size, mode, recipe)
    if mode != "affine":
        return _fixed(bits, group_size, mode)
    if bits is None or bits == WHOLE:
        if group_size is not None:
            raise UsageError("a group size belongs to a quantization", f"--bits 4 --group-size {group_size}")
        return Scheme("16bit", None)
    if bits not in BITS:
        known = ", ".join(map(str, BITS))
        raise UsageError(f"MLX does not quantize to {bits} bits", f"--bits is one of {known}, or {WHOLE} for a copy")
    return Scheme(f"{bits}bit", Packing(_group(group_size), bits))


def _mixed(bits: int | None, group_size: int | None, mode: str, recipe: str) -> Scheme:
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}", f"--recipe is one of {', '.join(RECIPES)}")
    if mode != "affine":
        raise UsageError(f"the recipes are affine, not {mode}", f"--recipe {recipe} without --mode")
    low = RECIPES[recipe][0]
    if bits not in (None, low):
        raise UsageError(f"{recipe} itself says which weights get how many bits", f"--recipe {recipe} without --bits")
    return Scheme(recipe, Packing(_group(group_size), low), recipe)


def _fixed(bits: int | None, group_size: int | None, mode: str) -> Scheme:
    if mode not in FIXED_MODES:
        raise UsageError(f"unknown mode {mode!r}", f"--mode is one of {', '.join(MODES)}")
    own_group, own_bits = FIXED_MODES[mode]
    if bits not in (None, own_bits) or group_size not in (None, own_group):
        raise UsageError(f"{mode} is {own_bits} bits in groups of {own_group}", f"--mode {mode} alone")
    return Scheme(mode, Packing(own_group, own_bits, mode))


def _group(group_size: int | None) -> int:
    if group_size is not None and group_size not in GROUP_SIZES:
        known = ", ".join(map(str, GROUP_SIZES))
        raise UsageError(f"MLX has no groups of {group_size}", f"--group-size is one of {known}")
    return group_size or DEFAULT_GROUP_SIZE


def packing(wanted: Scheme, path: str, shape: tuple[int, ...], layers: int) -> Packing | None:
    """Return the packing of the weight `path` in a model of `layers` layers, None if it stays unquantized.

    Vectors do, and rows that the scheme's groups do not divide. Raise ConversionError where mlx-lm fails too.
    """
    usual = wanted.usual
    if usual is None or len(shape) < 2 or shape[-1] % usual.group_size:
        return None
    if wanted.recipe is not None:  # mlx-lm's recipes take the place of the rule for routers
        bits = RECIPES[wanted.recipe][_gains_most(path, layers)]
        return Packing(usual.group_size, bits)
    if not path.endswith("mlp.gate"):
        return usual
    if shape[-1] % ROUTER.group_size:
        raise ConversionError(
            f"{path} has rows of {shape[-1]:,}, which its 8 bits in groups of {ROUTER.group_size} do not divide",
            "--recipe mixed_4_6 --group-size 32 packs it like the rest",
        )
    return ROUTER


def _gains_most(path: str, layers: int) -> bool:
    """Return whether a weight gets the higher bits of a recipe.

    Those are the head, and v_proj and down_proj in the outer eighths of the layers and every third layer between.
    """
    if path == "lm_head":
        return True
    if not path.endswith(("v_proj", "down_proj")):
        return False
    layer, eighth = int(path.split(".")[2]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
