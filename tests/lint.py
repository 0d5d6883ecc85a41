"""What no file of the package may do: execute what it reads, write what a kill leaves half written, or guess an encoding."""

import ast
from collections.abc import Iterator
from typing import Any

PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.load"}
CALLS |= {"yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "pd.read_pickle", "torch.hub.load", "runpy.run_path"}
PROCESSES = {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")}
SAFE = {"weights_only": True, "allow_pickle": False, "shell": False, "trust_remote_code": False}
NEEDED = {"torch.load": "weights_only", "np.load": "allow_pickle", "np.save": "allow_pickle"}
WRITERS = {
    "write_text",
    "write_bytes",
    "savefig",
    "save_file",
    "save_pretrained",
    "save_config",
    "to_csv",
    "to_json",
    "to_markdown",
}
WRITERS |= {"to_parquet", "to_html", "tofile", "savez_compressed", "savetxt", "imsave", "imwrite"}
WRITERS |= {
    "np.save",
    "np.savez",
    "torch.save",
    "json.dump",
    "yaml.dump",
    "shutil.copy",
    "shutil.copy2",
    "shutil.copyfile",
    "shutil.copytree",
}


def name_of(node: ast.AST) -> str:
    """The dotted name of what is called, as far as it is one."""
    match node:
        case ast.Name(word):
            return word
        case ast.Attribute(value, word):
            return f"{name_of(value)}.{word}"
    return "?"


def value(node: ast.AST) -> Any:
    """A constant's value; the node itself if it is none."""
    return node.value if isinstance(node, ast.Constant) else node


def executions(source: str) -> Iterator[str]:
    """Lines that execute what they read, or could, in whatever way it is spelled."""
    for node in ast.walk(ast.parse(source)):
        where = f"line {getattr(node, 'lineno', 0)}"
        match node:
            case ast.Import(names):
                for name in names:
                    if name.name.split(".")[0] in PICKLES or name.name.startswith(("torch.hub", "torch.distributed.checkpoint")):
                        yield f"{where}: import {name.name}"
            case ast.ImportFrom(module, names):
                taken = {name.name for name in names}
                if (module or "").split(".")[0] in PICKLES and taken != {"UnpicklingError"}:
                    yield f"{where}: from {module}"
                if (module, "hub") in {("torch", name) for name in taken} or (module or "").startswith(
                    "torch.distributed.checkpoint"
                ):
                    yield f"{where}: from {module}"
            case ast.keyword(arg, given) if arg in SAFE and value(given) is not SAFE[arg]:
                yield f"{where}: {arg}={ast.unparse(given)}"
            case ast.Dict(keys, values):
                for key, given in zip(keys, values, strict=True):
                    if key is not None and value(key) in SAFE and value(given) is not SAFE[value(key)]:
                        yield f"{where}: {ast.unparse(key)}: {ast.unparse(given)}"
            case ast.Subscript(_, key, ast.Store()) if value(key) in [*SAFE]:
                yield f"{where}: {ast.unparse(node)}"
            case ast.Call(called, arguments, keywords):
                name = name_of(called)
                if name in CALLS or name.split(".")[-1] in ("extractall", "unsafe_load"):
                    yield f"{where}: {name}"
                if name in NEEDED and not any(each.arg == NEEDED[name] for each in keywords):
                    yield f"{where}: {name} without {NEEDED[name]}"
                if name in PROCESSES and isinstance(arguments[0] if arguments else None, ast.Constant | ast.JoinedStr | ast.BinOp):
                    yield f"{where}: {name} of a string"
                if name.endswith("import_module") and arguments and str(value(arguments[0])).split(".")[0] in PICKLES:
                    yield f"{where}: {ast.unparse(node)}"
                if name.endswith("YAML") and any(each.arg == "typ" and value(each.value) != "safe" for each in keywords):
                    yield f"{where}: {ast.unparse(node)}"


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file, or opens one to be written."""
    name = name_of(call.func)
    last = name.split(".")[-1]
    if name in WRITERS or last in WRITERS:
        return last != "to_csv" or bool(call.args)  # without a path it gives a string
    if last not in ("open", "ZipFile", "TarFile", "fdopen"):
        return False
    modes = [*call.args[:3], *(each.value for each in call.keywords if each.arg == "mode")]
    words = [
        part.value for mode in modes for part in ast.walk(mode) if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    return any(len(word) <= 4 and set(word) & set("wax+") and set(word) <= set("rwaxbt+:") for word in words)


def unatomic(source: str) -> Iterator[tuple[str, str]]:
    """The function and the text of each write that is not to a temporary file of `replacing`."""

    def below(node: ast.AST, function: str, safe: bool) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.With) and any(
            isinstance(item.context_expr, ast.Call) and name_of(item.context_expr.func).split(".")[-1] == "replacing"
            for item in node.items
        ):
            safe = True
        if isinstance(node, ast.Call) and writes(node) and not safe:
            yield function, ast.unparse(node)
        for child in ast.iter_child_nodes(node):
            yield from below(child, function, safe)

    yield from below(ast.parse(source), "", False)


def unencoded(source: str) -> Iterator[str]:
    """Lines that read or write text in the encoding of the user's locale. Ruff's rule knows paths by their annotations only."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name, given = name_of(call.func), {each.arg: value(each.value) for each in call.keywords}
        last, arguments = name.split(".")[-1], [*map(value, call.args), given.get("mode", "r"), "r"]
        mode = arguments[1 if name == "open" or last == "fdopen" else 0]  # of a path, or of a function of one
        opens = last in ("open", "fdopen") and name != "tarfile.open" and isinstance(mode, str) and "b" not in mode
        if (last in ("read_text", "write_text") or opens or given.get("text") is True) and "encoding" not in given:
            yield f"line {call.lineno}: {ast.unparse(call)}"
