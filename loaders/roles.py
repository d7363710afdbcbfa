# SPDX-License-Identifier: Apache-2.0
"""What a tensor of an adapter's file is for its layer, by the end of its name in any dialect.

A role is called as such a tensor's name ends in ComfyUI's generic files, which are the ones that its loader reads.
"""

UP, DOWN, MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"
ALPHA, MAGNITUDE = "alpha", "dora_scale"
OF_LORA = (UP, DOWN, MID, ALPHA, MAGNITUDE)
_SPELLED = {
    UP: (
        "lora_up.weight",
        "lora.up.weight",
        "lora_linear_layer.up.weight",
        "lora_B.weight",
        "lora_B",
    ),
    DOWN: (
        "lora_down.weight",
        "lora.down.weight",
        "lora_linear_layer.down.weight",
        "lora_A.weight",
        "lora_A",
    ),
    MID: ("lora_mid.weight",),
    ALPHA: ("alpha",),
    MAGNITUDE: ("dora_scale", "lora_magnitude_vector.weight", "lora_magnitude_vector"),
}
# Those of other kinds are called alike everywhere.
_PLAIN = (
    *(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{part}" for part in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *("oft_blocks", "rescale"),
    *("diff", "diff_b", "w_norm", "b_norm", "set_weight", "reshape_weight"),
    *(f"{part}.weight" for part in ("a1", "a2", "b1", "b2")),
)
_TAILS = {
    **{f".{tail}": role for role, tails in _SPELLED.items() for tail in tails},
    "_lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    **{f".{tail}": tail for tail in _PLAIN},
}
# The longest end that fits, so that a1.weight is not taken for a weight.
_BY_LENGTH = sorted(_TAILS, key=len, reverse=True)
_PEFT = {"lora_A": DOWN, "lora_B": UP, "lora_magnitude_vector": MAGNITUDE}


def split(key: str) -> tuple[str, str]:
    """The layer's name in the file and the tensor's role; the whole and no role where it is nothing of an adapter's."""
    for end in _BY_LENGTH:
        if key.endswith(end) and len(key) > len(end):
            return key.removesuffix(end), _TAILS[end]
    parts = key.removesuffix(".weight").rsplit(".", 2)  # <layer>.lora_A.<adapter>.weight
    if len(parts) == 3 and parts[0] and parts[1] in _PEFT:
        has_weight = key.endswith(".weight")
        if has_weight or parts[1] == "lora_magnitude_vector":
            return parts[0], _PEFT[parts[1]]
    return key, ""


def down_names(layer: str) -> tuple[str, ...]:
    """The names that the down half of a layer may have."""
    return tuple(f"{layer}.{tail}" for tail in _SPELLED[DOWN])
