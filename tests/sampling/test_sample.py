"""Sampling: an image is a function of the checkpoint, the seed and its own number."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maskdit.artifacts.atomic import read_json, sha256, write_json
from maskdit.config.base import UserError
from maskdit.config.load import load
from maskdit.config.sampling import Sample
from maskdit.images.dataset import npz_images
from maskdit.latents import autoencoder
from maskdit.latents.dataset import Space
from maskdit.model.diffusion import denoise, guided
from maskdit.model.flops import forward
from maskdit.model.samplers import dpmpp_2m, heun, sigma_steps
from maskdit.model.transformer import Block, MaskDiT
from maskdit.runtime import environment
from maskdit.sampling import sample
from maskdit.weights.adm_npz import pack
from project import ROOT
from small import SAMPLE, make_run

PARAMS = load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A network like the released DiT: it predicts noise and its variance at discrete timesteps."""
    return make_run(tmp_path_factory.mktemp("released"), architecture={"out_channels": 4}, preconditioning="vp")


def draw(made, out, **changes):
    out.mkdir()
    sample.sample(Sample.model_validate({**SAMPLE, **changes}), run=made / "run", vae=made / "vae", out=out)
    images = np.concatenate([np.load(out / shard) for shard in read_json(out / "index.json")["shards"]])
    return images, np.load(out / "labels.npy")


@pytest.fixture
def whole(made, tmp_path, monkeypatch):
    """The fourteen images in one shard, and a scratch folder of the test's own."""
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    images, labels = draw(made, tmp_path / "whole")
    assert len(np.unique(images, axis=0)) == 14, "no two images are equal"
    return images, labels


@pytest.mark.parametrize("shards", [2, 3, 14])
def test_an_image_does_not_depend_on_the_number_of_shards(made, whole, tmp_path, shards):
    images, labels = draw(made, tmp_path / "out", shards=shards)
    np.testing.assert_array_equal(labels, whole[1])
    np.testing.assert_array_equal(images, whole[0])


@pytest.mark.parametrize("batch", [1, 7, 16])
def test_an_image_does_not_depend_on_the_size_of_the_batch(made, whole, tmp_path, batch):
    images, labels = draw(made, tmp_path / "out", batch=batch)
    np.testing.assert_array_equal(labels, whole[1])
    difference = np.abs(images.astype(int) - whole[0].astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_an_image_does_not_depend_on_how_many_are_drawn(made, whole, tmp_path):
    images, labels = draw(made, tmp_path / "out", images=6, shards=2)
    np.testing.assert_array_equal(labels, whole[1][:6])
    np.testing.assert_array_equal(images, whole[0][:6])


def test_balanced_labels_are_the_number_modulo_the_classes(made, whole, tmp_path):
    _, labels = draw(made, tmp_path / "out", labels="balanced")
    np.testing.assert_array_equal(labels, np.arange(14) % 3)


def test_finished_shards_survive_an_interruption(made, whole, tmp_path, monkeypatch):
    real, drawn = sample.save_array, []

    def dying(path, array):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(path.name)
        real(path, array)

    monkeypatch.setattr(sample, "save_array", dying)
    with pytest.raises(KeyboardInterrupt):
        draw(made, tmp_path / "cut", shards=4)
    again = []
    monkeypatch.setattr(sample, "save_array", lambda path, array: (again.append(path.name), real(path, array)))
    images, _ = draw(made, tmp_path / "out", shards=4)
    assert not set(again) & set(drawn), "what was finished is not drawn again"
    np.testing.assert_array_equal(images, whole[0])


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_an_image_does_not_depend_on_the_processes_that_draw_it(made, whole, tmp_path, monkeypatch, order):
    for part in order:
        monkeypatch.setattr(environment, "PART", (part, 2))
        sample.sample(Sample.model_validate({**SAMPLE, "shards": 3}), run=made / "run", vae=made / "vae", out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
    monkeypatch.setattr(environment, "PART", None)
    monkeypatch.setattr(autoencoder, "to_pixels", None)  # nothing is left to draw
    images, labels = draw(made, tmp_path / "out", shards=3)
    np.testing.assert_array_equal(images, whole[0])
    np.testing.assert_array_equal(labels, whole[1])


def test_another_autoencoder_is_refused(made, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "identity", lambda folder: "0" * 64)
    with pytest.raises(UserError, match="not the autoencoder that made the latents"):
        draw(made, tmp_path / "out")


def test_a_milestone_that_the_run_does_not_have_is_refused(made, whole, tmp_path):
    with pytest.raises(UserError, match=r"has no milestone 2, only \[3\]"):
        draw(made, tmp_path / "out", step=2)


def near(images, others):
    difference = np.abs(images.astype(int) - others.astype(int))
    return difference.max() <= 1 and (difference > 0).mean() <= 1e-3


@pytest.mark.parametrize(("solver", "steps"), [("heun", 4), ("dpmpp-2m", 4), ("ddpm", 12)])
def test_each_solver_draws_an_image_of_a_vp_network_as_a_function_of_its_number(released, whole, tmp_path, solver, steps):
    entry = {"solver": solver, "solver_steps": steps, "guidance_channels": "first3", "phase": "released"}
    seven, labels = draw(released, tmp_path / "seven", batch=7, **entry)
    sixteen, again = draw(released, tmp_path / "sixteen", batch=16, shards=3, **entry)
    np.testing.assert_array_equal(labels, again)
    assert near(seven, sixteen)
    assert len(np.unique(seven, axis=0)) == 14
    other, _ = draw(released, tmp_path / "other", batch=7, seed=6, **entry)
    assert not near(seven, other)


COSTS = [  # of 4 steps: evaluations, and passes at guidance 2; the levels are 80, 9.7, 0.47 and 0.002
    ({"solver": "heun"}, 7, 14),
    ({"solver": "heun", "guidance": 1.0}, 7, 7),
    ({"solver": "heun", "guidance_interval": [0.2, 1.6]}, 7, 9),
    ({"solver": "dpmpp-2m"}, 4, 8),
    ({"solver": "dpmpp-2m", "guidance_interval": [0.2, 1.6]}, 4, 5),
]


@pytest.mark.parametrize(("changes", "nfe", "passes"), COSTS, ids=[str(changes) for changes, _, _ in COSTS])
def test_the_record_counts_what_was_asked_of_the_network(made, whole, tmp_path, monkeypatch, changes, nfe, passes):
    seen, real = [], MaskDiT.forward
    monkeypatch.setattr(MaskDiT, "forward", lambda net, x, *rest: (seen.append(len(x)), real(net, x, *rest))[1])
    draw(made, tmp_path / "out", images=4, solver_steps=4, **changes)
    protocol = read_json(tmp_path / "out" / "index.json")["protocol"]
    assert (protocol["nfe"], protocol["network_passes"]) == (nfe, passes) == (len(seen), sum(seen) / 4)
    assert protocol["guidance_interval"] == changes.get("guidance_interval")
    told = read_json(tmp_path / "out" / "index.json")["checkpoint"]
    assert told["forward_flops"] == forward(16, 16, 8, 16, [16], 16, 8, None)
    assert told["device_seconds"] is None, "not known of weights that do not tell"


def test_the_record_names_the_solver_and_its_noise_levels(released, whole, tmp_path):
    changes = {"guidance_channels": "first3", "guidance_interval": [0.5, 5.0], "quantisation": "floor"}
    draw(released, tmp_path / "out", images=2, solver="ddpm", solver_steps=10, **changes)
    protocol = read_json(tmp_path / "out" / "index.json")["protocol"]
    assert {name: protocol[name] for name in changes} == changes
    assert protocol["sampler"] == "DDPM"
    assert protocol["nfe"] == 10
    assert protocol["sigma_range"] == pytest.approx([0.01, 157.4], rel=1e-3)


def test_the_record_has_the_held_out_loss_of_its_checkpoint_if_that_has_one(whole, tmp_path):
    losses = {"heldout": 0.5, "heldout_0.250": 0.4}
    run = make_run(tmp_path, heldout=losses)
    draw(run, tmp_path / "out", images=2)
    assert read_json(tmp_path / "out" / "index.json")["checkpoint"]["heldout"] == losses
    assert "heldout" not in read_json(tmp_path / "whole" / "index.json")["checkpoint"]


def test_floor_is_never_above_round(made, whole, tmp_path):
    images, _ = draw(made, tmp_path / "out", quantisation="floor")
    difference = whole[0].astype(int) - images
    assert set(np.unique(difference)) == {0, 1}
    assert 0.3 < difference.mean() < 0.7


def test_half_precision_draws_nearly_the_same_images(made, whole, tmp_path):
    images, labels = draw(made, tmp_path / "out", precision="bf16")
    np.testing.assert_array_equal(labels, whole[1])
    assert np.abs(images.astype(int) - whole[0]).mean() < 2


def test_settings_of_the_machine_have_neutral_defaults_that_are_in_no_hash():
    entry = Sample.model_validate(SAMPLE)
    assert not {"compile", "vae_precision"} & entry.model_dump().keys()
    assert (
        Sample.model_validate({**SAMPLE, "compile": "auto", "vae_precision": "fp32"}).model_dump_json() == entry.model_dump_json()
    )


def test_an_autoencoder_decodes_in_the_precision_of_the_protocol_which_says_so(made, whole, tmp_path):
    images, _ = draw(made, tmp_path / "bf16", vae_precision="bf16")
    assert 0 < np.abs(images.astype(int) - whole[0]).mean() < 2
    assert read_json(tmp_path / "bf16" / "index.json")["protocol"]["vae_precision"] == "bf16"
    np.testing.assert_array_equal(draw(made, tmp_path / "tf32", vae_precision="tf32")[0], whole[0])  # a CPU has no tf32
    assert torch.backends.cudnn.allow_tf32
    np.testing.assert_array_equal(draw(made, tmp_path / "fp32", shards=2)[0], whole[0])
    assert not torch.backends.cudnn.allow_tf32
    assert "vae_precision" not in read_json(tmp_path / "fp32" / "index.json")["protocol"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_blocks_draw_nearly_the_same_images(made, whole, tmp_path, monkeypatch, precision):
    compiled = []

    def traced(block, **how):  # what is traced is compiled by gcc in the test that is slow
        compiled.append(how)
        return real(block, backend="aot_eager", **how)

    real = Block.compile
    monkeypatch.setattr(Block, "compile", traced)
    images, _ = draw(made, tmp_path / "out", precision=precision, compile=True)
    assert compiled == [{"dynamic": False}]
    assert read_json(tmp_path / "out" / "index.json")["protocol"]["compiled"]
    eager = whole[0] if precision == "fp32" else draw(made, tmp_path / "eager", precision=precision)[0]
    assert np.abs(images.astype(int) - eager).mean() < (0.01 if precision == "fp32" else 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's compiler
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_that_are_compiled_to_machine_code_draw_nearly_the_same_images(made, whole, tmp_path, precision):
    images, _ = draw(made, tmp_path / "out", precision=precision, compile=True)
    eager = whole[0] if precision == "fp32" else draw(made, tmp_path / "eager", precision=precision)[0]
    assert np.abs(images.astype(int) - eager).mean() < (0.01 if precision == "fp32" else 2)


def test_auto_compiles_on_a_gpu_where_it_saves_minutes_and_does_without_a_compiler(monkeypatch, capsys):
    entry, gpu, cpu = partial(Sample.model_validate, {**SAMPLE, "images": 1000}), torch.device("cuda"), torch.device("cpu")
    missing = []
    monkeypatch.setattr(sample, "prepare_compiler", lambda where: missing and (_ for _ in ()).throw(UserError("no gcc here")))
    auto, asked, never = (Sample.model_validate({**SAMPLE, "images": 1000, "compile": each}) for each in ("auto", True, False))
    assert entry() == auto
    assert [sample.compiles(auto, where, flops) for where in (cpu, gpu) for flops in (1e12, 1e14)] == [False, False, False, True]
    assert [sample.compiles(asked, where, 1.0) for where in (cpu, gpu)] == [True, True]
    assert not sample.compiles(never, gpu, 1e14)
    missing.append(True)
    assert not sample.compiles(auto, gpu, 1e14)
    assert "sample: not compiled: no gcc here" in capsys.readouterr().err
    with pytest.raises(UserError, match="no gcc here"):
        sample.compiles(asked, gpu, 1e14)


@pytest.mark.parametrize("solver", [heun, dpmpp_2m])
def test_a_solver_asks_no_number_of_the_device_which_would_wait_for_it(solver):
    class Asked(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, words=(), names=None):
            assert function is not torch.ops.aten._local_scalar_dense.default
            return function(*words, **(names or {}))

    net = MaskDiT(side=8, channels=2, classes=3, encoder={"patch": 2, "depth": 1, "width": 16, "heads": 2}, decoder=None)
    with torch.no_grad(), Asked():
        solver(guided(net, torch.zeros(2, dtype=torch.long), 1.5, ask=denoise), torch.randn(2, 2, 8, 8), sigma_steps(4))


def test_ddpm_of_a_network_that_predicts_no_variance_is_refused(made, whole, tmp_path):
    with pytest.raises(UserError, match="ddpm needs a network that predicts noise and its variance"):
        draw(made, tmp_path / "out", solver="ddpm", solver_steps=10)


def test_samples_are_packed_as_adm_s_evaluator_reads_them(made, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    draw(made, tmp_path / "samples", shards=3)
    out = tmp_path / "samples"
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in out.iterdir()}
    write_json(out / "manifest.json", {"node": "sample/toy", "files": files, "lineage": {}, "made": {}})
    pack(out, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as stored:
        shards = [np.load(out / name) for name in read_json(out / "index.json")["shards"]]
        np.testing.assert_array_equal(stored["arr_0"], np.concatenate(shards))
        np.testing.assert_array_equal(stored["arr_1"], np.load(out / "labels.npy"))
        assert stored["arr_0"].dtype == np.uint8
    np.testing.assert_array_equal(npz_images(tmp_path / "x.npz"), np.concatenate(shards))  # where it lies in the file
    with pytest.raises(UserError, match="already exists"):
        pack(out, tmp_path / "x.npz")
    os.utime(out / "images-0000.npy")
    pack(out, tmp_path / "y.npz")
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    (out / "images-0001.npy").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"images-0001\.npy is not the file that was written"):
        pack(out, tmp_path / "z.npz")
    assert not list(tmp_path.glob("*z.npz*"))


@pytest.mark.parametrize("study", PARAMS.strip)
def test_all_that_a_strip_shows_of_an_image_began_with_the_same_noise_and_label(study):
    space, rows = Space(4, 8, (0.0,) * 4, (1.0,) * 4, "", tuple("abcdefgh")), np.array(PARAMS.strip[study].images)
    noise, labels = zip(*(sample.starts(PARAMS.sample[name], space, rows) for name in PARAMS.strip[study].evals), strict=True)
    assert len(noise) >= 8
    assert all(np.array_equal(each, noise[0]) for each in noise)
    assert all(np.array_equal(each, labels[0]) for each in labels)
    assert not np.array_equal(noise[0][0], noise[0][1])
