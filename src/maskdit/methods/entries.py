"""The methods of params.yaml: what each training computes, and what in the file does not fit it. No torch."""

from collections.abc import Iterator
from typing import Any

from maskdit.config.base import UserError
from maskdit.config.claims import Crossing
from maskdit.config.errors import nearest
from maskdit.config.params import Params
from maskdit.config.training import Encoder, Finetune, Pretrain, Released, Transformer
from maskdit.methods.contract import Method
from maskdit.methods.plugins import OURS, found, of_entry, of_facts, sha256_of

XL = Encoder(patch=2, depth=28, width=1152, heads=16), Transformer(depth=8, width=512, heads=16)  # of published weights, as a guess


def sizes(params: Params, dataset: str, vae: str, encoder: Encoder, decoder: Transformer | None) -> dict[str, Any]:
    """The architecture of a network for the latents of some images, without its classes, which cost nothing."""
    coder = params.vae[vae]
    halves = {name: half and half.model_dump(exclude={"revision"}) for name, half in (("encoder", encoder), ("decoder", decoder))}
    side = params.pictures(dataset).resolution // coder.factor
    return {"side": side, "channels": coder.latent_channels, "classes": 1, **halves}


def of_node(params: Params, verb: str, key: str) -> Method:
    """The method of a training, or that with which published weights, which are taken to be of the paper's size, are sampled.

    Raises UserError as `plugins.made` does.
    """
    entry = params.entry(verb, key)
    if isinstance(entry, Released):
        halves = XL[0], None if entry.format == "dit" else XL[1]
        return of_facts({"architecture": sizes(params, params.reference[entry.dataset].dataset, entry.vae, *halves)})
    if isinstance(entry, Pretrain):
        encode = params.encode[entry.dataset]
        return of_entry(entry, sizes(params, encode.dataset, encode.vae, entry.encoder, entry.decoder))
    before = of_node(params, entry.phase, entry.run)
    return of_facts({"architecture": before.architecture, **before.named()}, entry)


def name_code(params: Params) -> None:
    """Put the digest of each user's method into the entries that name it. Raises UserError if a method cannot be had."""
    for key, entry in params.pretrain.items():
        if entry.method_sha256:
            raise UserError(f"pretrain.{key}.method_sha256: is computed from the method's file; remove it")
        if entry.method:
            try:
                params.pretrain[key] = entry.model_copy(update={"method_sha256": sha256_of(entry.method)})
            except UserError as error:
                raise UserError(f"pretrain.{key}.method: {error}") from None


def unfit(params: Params) -> Iterator[str]:
    """Trainings that do not fit their methods, samples whose solver does not, and claims about models that there are not."""
    for verb in ("pretrain", "finetune"):
        for key, entry in getattr(params, verb).items():
            try:
                method = of_node(params, verb, key)
            except UserError as error:
                yield f"{verb}.{key}.{error}"
                return
            if not (isinstance(entry, Finetune) and entry.phase == "released"):  # of which only the weights tell
                yield from (f"{verb}.{key}.{problem}" for problem in method.misfits(entry))
    for key, sample in params.sample.items():
        if sample.phase != "released" and sample.solver not in (fitting := of_node(params, sample.phase, sample.run).solvers()):
            yield f"sample.{key}.solver: {sample.solver} does not fit {sample.phase}.{sample.run}; set it to {' or '.join(fitting)}"
    names = {found(name).name for name in (*OURS, *filter(None, (entry.method for entry in params.pretrain.values())))}
    for key, ledger in params.claims.items():
        for name, claim in ledger.claims.items():
            for evidence in (claim.evidence, claim.scaled, claim.control):
                if isinstance(evidence, Crossing) and evidence.model not in names:
                    yield f"claims.{key}.claims.{name}: no method has the name '{evidence.model}'{nearest(evidence.model, names)}"
