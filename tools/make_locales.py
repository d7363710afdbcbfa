# SPDX-License-Identifier: Apache-2.0
"""Writes locales/en/nodeDefs.json from the nodes' schemas: `python -m tools.make_locales`.

The browser takes the English texts from there, too, so the file has to say what the schemas say.

    python -m tools.make_locales --accept zh GraftTrain   # its Chinese texts say what the English ones say now

does so, too, and then marks a node's texts in locales/zh as translated from the present English ones.
"""

import argparse
import importlib
from typing import Any

from tests.host import inprocess

inprocess.alias_pack()

from graft.tools.translation import LETTERS, Translation, text  # noqa: E402

PATH = inprocess.ROOT / "locales" / "en" / "nodeDefs.json"


def definitions() -> dict[str, Any]:
    """Return the texts of all nodes as ComfyUI's locale files hold them."""
    inprocess.start()
    from graft.nodes import MODULES

    loaded = [importlib.import_module(f"graft.nodes.{name}") for name in MODULES]
    schemas = [node.GET_SCHEMA() for module in loaded for node in module.NODES]
    return {schema.node_id: _texts(schema) for schema in schemas}


def _texts(schema: Any) -> dict[str, Any]:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {
            one.id: {"name": one.display_name or one.id, "tooltip": one.tooltip}
            for one in schema.inputs
        },
        "outputs": {
            str(index): {"name": one.display_name, "tooltip": one.tooltip}
            for index, one in enumerate(schema.outputs)
        },
    }


def main() -> None:
    """Write the English file, and accept translations where they are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--accept", nargs="+", metavar=("LANGUAGE", "NODE"), help="a language and ids of nodes"
    )
    language, *nodes = parser.parse_args().accept or [None]
    english = definitions()
    unknown = sorted(set(nodes) - english.keys())
    if language and (language not in LETTERS or unknown or not nodes):
        parser.error(
            f"--accept takes a language ({', '.join(LETTERS)}) and ids of nodes, for example "
            f"--accept zh GraftTrain; got {' '.join([language, *nodes])}"
        )
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(text(english), encoding="utf-8", newline="\n")
    print(f"wrote {PATH}")
    if language:
        translation = Translation(language)
        translation.accept(english, nodes)
        print(f"wrote {translation.path} and {translation.marks_path}")
        print("\n".join(translation.faults(english)) or "no fault is left")


if __name__ == "__main__":
    main()
