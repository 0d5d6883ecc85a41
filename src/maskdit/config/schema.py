"""The schema of params.yaml for editors, from its models; `make schema` writes it."""

import json
from typing import Any

from maskdit.config.expand import Drawn, Shown, Written
from maskdit.config.params import OF_REPORT, Params

MAPS = ("$defs", "properties")


def schema() -> dict[str, Any]:
    """The JSON schema of params.yaml as it is written, before its entries are expanded."""
    tree, written = Params.model_json_schema(), Written.model_json_schema()
    models, parts = tree["$defs"], written["$defs"]
    models |= {name: parts[name] for name in ("Choice", "Measured", "Judged")}
    for section in ("features", "evaluate"):
        tree["properties"][section] = written["properties"][section]
    models["Sample"]["properties"] |= Drawn.model_json_schema()["properties"]
    models["Sample"]["required"] += [*Drawn.model_fields]
    for name in map(str.capitalize, OF_REPORT):
        models[name]["properties"]["select"] = Shown.model_json_schema()["properties"]["select"]
        del models[name]["properties"]["evals"]
        models[name]["required"].remove("evals")
    unused = {"Features", "Evaluate"}
    tree["$defs"] = {name: model for name, model in sorted(models.items()) if name not in unused}
    return tree


def text() -> str:
    """The same as the file holds it: a line for each section and each model."""
    tree = schema()
    parts = {name: ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in tree.pop(name).items()) for name in MAPS}
    return "{\n" + "".join(f"{json.dumps(name)}: {{\n{lines}\n}},\n" for name, lines in parts.items()) + json.dumps(tree)[1:] + "\n"


if __name__ == "__main__":
    print(text(), end="")
