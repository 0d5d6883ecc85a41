"""Writes the JSON schema of params.yaml for editors, from the models; run by `make schema`."""

import json

from maskdit.config.expand import Drawn, Shown, Written
from maskdit.config.params import SELECTING, Params

EXPANDED = {"evals", "chosen", "rescored", "arms", "reports"}  # fields that expansion writes


def text() -> str:
    """The JSON schema of params.yaml before expansion, with one line for each section and each model."""
    tree, written = Params.model_json_schema(), Written.model_json_schema()
    models = tree["$defs"] | {name: written["$defs"][name] for name in ("Choice", "Measured", "Judged")}
    for section in ("features", "evaluate"):
        tree["properties"][section] = written["properties"][section]
        del models[section.capitalize()]  # describes the expanded entries
    drawn = Drawn.model_json_schema()
    models["Sample"]["properties"] |= drawn["properties"]
    models["Sample"]["required"] += drawn["required"]
    del models["Reported"]
    for name in map(str.capitalize, SELECTING):
        properties = models[name]["properties"]
        properties["select"] = Shown.model_json_schema()["properties"]["select"]
        models[name]["properties"] = {field: value for field, value in properties.items() if field not in EXPANDED}
        models[name]["required"] = [field for field in models[name]["required"] if field not in EXPANDED]
    tree["$defs"] = dict(sorted(models.items()))
    parts = {}
    for name in ("$defs", "properties"):
        parts[name] = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in tree.pop(name).items())
    return "{\n" + "".join(f"{json.dumps(name)}: {{\n{lines}\n}},\n" for name, lines in parts.items()) + json.dumps(tree)[1:] + "\n"


if __name__ == "__main__":
    print(text(), end="")
