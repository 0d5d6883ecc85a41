"""Methods by their names: ours, or a class of the user's, in an importable module or in a file beside params.yaml."""

import hashlib
import inspect
import sys
import traceback
from collections.abc import Collection, Iterator
from functools import cache
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from maskdit.config.base import UserError
from maskdit.config.errors import first, nearest
from maskdit.config.training import Pretrain, Training, implied
from maskdit.methods.contract import Method

OURS = {
    "dit": "maskdit.methods.dit:Dit",
    "maskdit": "maskdit.methods.maskdit:MaskDit",
    "tread": "maskdit.methods.tread:Tread",
    "sit": "maskdit.methods.sit:Sit",
    "mask-sit": "maskdit.methods.mask_sit:MaskSit",
}
FILES = set[Path]()  # of the user's methods that have been imported
VP = {"dit": "maskdit.methods.dit_vp:DitVp", "tread": "maskdit.methods.dit_vp:TreadVp"}  # of published weights that predict noise


class _Source(SourceFileLoader):
    """Reads the file itself, never compiled code that a change within the same second would leave behind."""

    def path_stats(self, path: Any) -> Any:
        raise OSError(f"{path}: not compared with compiled code")


def _module(place: str) -> ModuleType:
    """The module of a file or of a dotted name. Raises UserError with the reason if it cannot be imported."""
    path = Path(place)
    if path.suffix == ".py":
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{place}: a method's file must lie beside params.yaml or in a folder there")
        if not path.is_file():
            raise UserError(f"{place}: no such file; name one beside params.yaml, and run the command where that is")
    name = place if path.suffix != ".py" else "maskdit_method_" + hashlib.sha256(place.encode()).hexdigest()[:8]
    try:
        if path.suffix != ".py":
            return import_module(place)
        spec = spec_from_file_location(name, path, loader=_Source(name, place))
        assert spec
        assert spec.loader
        sys.modules[name] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # whatever the user's code raises
        sys.modules.pop(name, None)
        raise UserError(f"{place}: cannot be imported: {_told(error)}; correct that, then run the command again") from None


@cache
def found(name: str) -> type[Method]:
    """The class of a method. Raises UserError if there is none, or if it lacks a part of the contract."""
    place, _, word = OURS.get(name, name).rpartition(":")
    if not place:
        raise UserError(f"no method '{name}'{nearest(name, OURS)}; a class of your own is FILE.py:CLASS or MODULE:CLASS")
    module = _module(place)
    method = getattr(module, word, None)
    if not isinstance(method, type):
        classes = [each for each, kind in vars(module).items() if isinstance(kind, type) and kind.__module__ == module.__name__]
        raise UserError(f"{place}: has no class '{word}'{nearest(word, classes)}")
    if not issubclass(method, Method):
        raise UserError(f"{name}: is no Method; write class {word}(Method), from maskdit.methods.contract import Method")
    taken: Collection[str] = () if name in (*OURS, *VP.values()) else {found(ours).name for ours in OURS}
    if lacking := next(_lacking(method, taken), ""):
        raise UserError(f"{name}: {lacking}; see src/maskdit/methods/contract.py")
    if name not in (*OURS, *VP.values()) and (file := inspect.getsourcefile(method)):
        FILES.add(Path(file).resolve())
    return method


def fault_of(error: BaseException) -> UserError | None:
    """The place in the file of a user's method that an error has come from, in one line; None if it has come from elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if Path(frame.filename).resolve() in FILES), None)
    if place is None:
        return None
    where = f"{place.filename}:{place.lineno}: in {place.name}"
    return UserError(f"{where}: {_told(error)}; correct that, then run the command again")


def _told(error: BaseException) -> str:
    """The kind and the message of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _lacking(method: type[Method], taken: Collection[str]) -> Iterator[str]:
    """What a class lacks of the contract, in words."""
    yield from (f"lacks {part}(), a part of the contract" for part in vars(Method) if part in method.__abstractmethods__)
    name = getattr(method, "name", None)
    if not isinstance(name, str) or len(name.split()) != 1:
        yield "lacks name, the word that stands for it in tables"
    if name in taken:
        yield f"has the name {name}, which is that of another method; give it a word of its own"
    for part, wanted in vars(Method).items():
        own = inspect.getattr_static(method, part)
        if inspect.isfunction(wanted) and not (inspect.isfunction(own) and _takes(own, wanted)):
            yield f"{part} must be def {part}({', '.join(inspect.signature(wanted).parameters)})"


def _takes(own: Any, wanted: Any) -> bool:
    """Whether a function takes the arguments of another, with and without those that may be left out."""
    parameters = inspect.signature(wanted).parameters.values()
    try:
        inspect.signature(own).bind(*parameters)
        inspect.signature(own).bind(*(each for each in parameters if each.default is each.empty))
    except TypeError:
        return False
    return True


def sha256_of(name: str) -> str | None:
    """The digest of the file of a user's method; None for ours, whose `revision` says what has changed."""
    if name in OURS:
        return None
    file = inspect.getsourcefile(found(name))
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def altered(method: Method) -> bool:
    """Whether the file of a user's method is another than that which trained a checkpoint."""
    return bool(method.source) and sha256_of(method.source["name"]) != method.source["sha256"]


def made(name: str, architecture: dict[str, Any], options: dict[str, Any], sha256: str | None = None) -> Method:
    """A method that an entry or a checkpoint names. Raises UserError for options that it does not have."""
    method = found(name)
    try:
        typed = method.Options.model_validate(options)
    except ValidationError as error:
        raise UserError(f"options.{first(error, method.Options)} ({name})") from None
    return method(architecture, typed, {"name": name, "options": options, "sha256": sha256})


def _usual(architecture: dict[str, Any], config: Training | None, vp: bool = False) -> Method:
    """The method of an entry that names none."""
    name = implied(architecture["decoder"], config and config.route)
    if config and config.options:
        raise UserError(f"options.{next(iter(config.options))}: unknown key; {name} has no options")
    method = found(VP[name] if vp else name)
    return method(architecture, method.Options(), {})


def of_entry(config: Pretrain, architecture: dict[str, Any]) -> Method:
    """The method of an entry of pretrain for latents of this form. Raises UserError as `made` does."""
    if config.method is None:
        return _usual(architecture, config)
    return made(config.method, architecture, config.options, config.method_sha256)


def of_facts(facts: dict[str, Any], config: Training | None = None, architecture: dict[str, Any] | None = None) -> Method:
    """The method behind a checkpoint; a finetuning `config` changes the options that it names.

    architecture: in place of the checkpoint's.
    """
    architecture, known = architecture or facts["architecture"], facts.get("method")
    if not known:
        return _usual(architecture, config, facts.get("preconditioning") == "vp")
    options = {**known["options"], **(config.options if config else {})}
    return made(known["name"], architecture, options, known["sha256"])
