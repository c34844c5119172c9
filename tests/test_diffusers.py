"""Folders of diffusers: random networks saved by that library come back the same, and its samplers and ours agree."""

import json
import logging
import sys

import pytest
import torch
from exact import mixture
from safetensors.torch import load_file, save_file

from dmcmc_core import integrators
from dmcmc_core.checkpoints import convert, diffusers_config, known, load_model
from dmcmc_core.checkpoints import diffusers as folders
from dmcmc_core.errors import UserError
from dmcmc_core.fingerprint import fingerprint
from dmcmc_core.runs.folder import load_images
from dmcmc_core.runs.make import run
from dmcmc_core.runs.model import conditioned
from dmcmc_core.schedules import karras

diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'dmcmc-core[diffusers]'")

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SHARED = {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
NETS = {
    "ncsnpp": {
        "block_out_channels": (32, 32),  # its attention has groups of 32 whatever the configuration says
        "time_embedding_type": "fourier",
        "center_input_sample": True,
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "mid_block_scale_factor": 2**0.5,
    },
    "ddpm": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    },
}


def unet(kind, **more):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**SHARED | NETS[kind] | more).eval().requires_grad_(False)


def saved(folder, net, scheduler):
    """A pipeline's folder."""
    net.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", type(scheduler).__name__]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline"} | parts))
    return folder


def made(name, **options):
    return getattr(diffusers, name)(**options)


def close(found, wanted, tolerance=1e-5):
    assert found.shape == wanted.shape and (found - wanted).norm() < tolerance * wanted.norm()


def test_exploding_network(tmp_path):
    net = unet("ncsnpp")
    model = load_model(saved(tmp_path / "church", net, diffusers.ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=380.0)))
    assert (model.shape, model.data_range, model.name) == ((3, 8, 8), (0.0, 1.0), "church")
    assert (model.sigma_min, model.sigma_max) == (0.02, 380.0) and not model.net.training
    sigma = torch.tensor([0.02, 0.7, 30.0, 380.0]).repeat(16)  # a whole block: its waves magnify the last digit of log
    x = torch.rand(64, 3, 8, 8) + sigma[:, None, None, None] * torch.randn(64, 3, 8, 8)
    answer = net(x, sigma).sample
    clean = model(x, sigma)
    for row in range(4):
        found = (clean[row].double() - x[row]) / sigma[row] ** 2
        close(found, answer[row].double(), 1e-5 if sigma[row] > 0.1 else 1e-3)  # what x leaves of the last digits
        close(clean[row], x[row] + sigma[row] ** 2 * answer[row])


@pytest.mark.parametrize("name", folders.PRESERVING)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_levels_are_those_of_the_scheduler(tmp_path, name, betas):
    scheduler = made(name, beta_schedule=betas, num_train_timesteps=100)
    model = load_model(saved(tmp_path, unet("ddpm"), scheduler))
    kept = scheduler.alphas_cumprod.double()
    assert model.data_range == (-1.0, 1.0)
    assert model.sigma_min == pytest.approx(((1 - kept[0]) / kept[0]).sqrt().item(), rel=1e-12)
    assert model.sigma_max == pytest.approx(((1 - kept[-1]) / kept[-1]).sqrt().item(), rel=1e-12)
    torch.testing.assert_close(model.net.timestep((1 / kept - 1).sqrt()), torch.arange(100.0).double())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_preserving_network(tmp_path, name, prediction):
    """At a timestep the denoiser is what the scheduler takes for the clean image."""
    net, scheduler = unet("ddpm"), made(name, prediction_type=prediction, clip_sample=False)
    model = load_model(saved(tmp_path, net, scheduler))
    scheduler.set_timesteps(1000)
    for t in (0, 1, 250, 600, 999):
        kept = scheduler.alphas_cumprod[t]
        x = torch.randn(4, 3, 8, 8)
        clean = scheduler.step(net(x, t).sample, t, x).pred_original_sample
        close(model(x / kept.sqrt(), ((1 - kept) / kept).sqrt()), clean)


def test_between_timesteps_log_sigma_is_linear(tmp_path):
    net, scheduler = unet("ddpm"), diffusers.DDPMScheduler()
    model = load_model(saved(tmp_path, net, scheduler))
    sigmas = ((1 - scheduler.alphas_cumprod.double()) / scheduler.alphas_cumprod.double()).sqrt()
    sigma = (sigmas[300] ** 0.75 * sigmas[301] ** 0.25)[None]
    torch.testing.assert_close(model.net.timestep(sigma), torch.tensor([300.25]).double())
    x = torch.randn(1, 3, 8, 8) * sigma.float()
    close(model(x, sigma), x - sigma.float() * net(x / (1 + sigma.float() ** 2).sqrt(), torch.tensor(300.25)).sample)
    assert model.net.timestep(torch.tensor([1e-6, 1e6])).tolist() == [0.0, 999.0]


def test_noise_without_an_image_is_no_level(tmp_path):
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    model = load_model(saved(tmp_path, unet("ddpm"), scheduler))
    before, last = scheduler.alphas_cumprod[-2:].double()
    assert last == 0 and len(model.net.log_levels) == 999
    assert model.sigma_max == pytest.approx((1 / before - 1).sqrt().item())


def start(model, sigma, rows=3):
    torch.manual_seed(1)
    return torch.randn(rows, *model.shape), torch.as_tensor(sigma, dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_dpmsolver_is_our_dpmpp_2m(tmp_path, prediction):
    net, scheduler = unet("ddpm"), diffusers.DPMSolverMultistepScheduler(prediction_type=prediction)
    model = load_model(saved(tmp_path, net, scheduler))
    scheduler.set_timesteps(8)
    x, sigmas = start(model, scheduler.sigmas)
    ours = integrators.dpmpp_2m(model, x * (1 + sigmas[0].float() ** 2).sqrt(), sigmas)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x).prev_sample
    close(ours, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy's, of how they call it
@pytest.mark.parametrize(
    ("scheduler", "theirs", "name", "ours"),
    [
        ("DEISMultistepScheduler", {"solver_order": 3}, "deis", {"degree": 2, "basis": "log"}),
        ("DEISMultistepScheduler", {"solver_order": 2}, "deis", {"degree": 1, "basis": "log"}),
        ("UniPCMultistepScheduler", {"solver_order": 3}, "unipc", {}),
        ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh1"}, "unipc", {"order": 2, "variant": "bh1"}),
        (
            "DPMSolverMultistepScheduler",
            {"solver_order": 3, "final_sigmas_type": "sigma_min"},
            "dpmpp_3m",
            {"published": True},
        ),
    ],
)
def test_fast_schedulers_on_a_known_model(scheduler, theirs, name, ours):
    """On our grid, which ends above 0, in float64 but for DPMSolver, which goes through float32.

    The schedulers lower the order of their last steps, unless told not to; ours only that of a step to 0.
    """
    model = mixture()
    x, sigmas = model.sample(5, 10.0, seed=2), karras(9, 10.0, 0.05)[:-1]
    scheduler = made(scheduler, lower_order_final=False, **theirs)
    scheduler.set_timesteps(8)
    scheduler.sigmas = sigmas
    u = x / (1 + sigmas[0] ** 2).sqrt()
    for sigma, t in zip(sigmas, scheduler.timesteps, strict=False):
        at = u * (1 + sigma**2).sqrt()
        u = scheduler.step((at - model(at, sigma)) / sigma, t, u).prev_sample
    wanted = u * (1 + sigmas[-1] ** 2).sqrt()
    close(integrators.INTEGRATORS[name](model, x, sigmas, **ours), wanted, 1e-6 if name == "dpmpp_3m" else 1e-11)


def test_ddim_is_our_euler(tmp_path):
    net, scheduler = unet("ddpm"), diffusers.DDIMScheduler(clip_sample=False)
    model = load_model(saved(tmp_path, net, scheduler))
    scheduler.set_timesteps(10)
    kept = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    x, sigmas = start(model, torch.cat([((1 - kept) / kept).sqrt(), kept.new_zeros(1)]))
    ours = integrators.euler(model, x / kept[0].sqrt().float(), sigmas)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x).prev_sample
    close(ours, x)


@pytest.mark.parametrize(
    ("kind", "options"), [("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}), ("EDMEulerScheduler", {})]
)
def test_euler_is_our_euler(tmp_path, kind, options):
    net, scheduler = unet("ddpm"), getattr(diffusers, kind)(**options)
    model = load_model(saved(tmp_path, net, scheduler))
    scheduler.set_timesteps(8)
    x, sigmas = start(model, scheduler.sigmas)
    x = x * scheduler.init_noise_sigma
    ours = integrators.euler(model, x, sigmas)
    for t in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    close(ours, x)


def test_exploding_predictor_is_our_reverse_diffusion(tmp_path):
    """With sampling_eps = 0, where the two grids (told to the network, stepped on) differ by rounding alone."""
    net = unet("ncsnpp")
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_max=50.0, sampling_eps=0.0)
    model = load_model(saved(tmp_path, net, scheduler))
    scheduler.set_timesteps(9)
    scheduler.set_sigmas(9)
    x, sigmas = start(model, torch.cat([scheduler.discrete_sigmas.flip(0), torch.zeros(1)]), rows=64)
    x = x * scheduler.init_noise_sigma
    torch.manual_seed(2)
    ours = integrators.reverse_diffusion(model, x, sigmas, noise=lambda x: torch.randn(x.shape))
    torch.manual_seed(2)
    for sigma, t in zip(sigmas[:-1].float(), scheduler.timesteps, strict=True):
        x, mean = scheduler.step_pred(net(x, sigma.expand(len(x))).sample, t, x, return_dict=False)
    close(ours, mean, 1e-4)


def test_classes(tmp_path):
    net = unet("ddpm", num_class_embeds=4)
    scheduler = diffusers.DDPMScheduler()
    model = load_model(saved(tmp_path / "classes", net, scheduler))
    kept = scheduler.alphas_cumprod[500]
    x, labels, sigma = torch.randn(4, 3, 8, 8), torch.tensor([0, 3, 1, 1]), ((1 - kept) / kept).sqrt()
    close(model(x / kept.sqrt(), sigma, labels), x / kept.sqrt() - sigma * net(x, 500, labels).sample)
    for wrong, match in ((None, "needs labels"), (labels + 1, "from 0 to 3"), (labels[:, None], r"must be \(64,\)")):
        with pytest.raises(UserError, match=match):
            model(x, sigma, wrong)
    settings = {"label": 1, "guidance": 3}
    with pytest.raises(UserError, match="guidance needs a network that was trained without labels too"):
        conditioned(model, settings)
    guided, _ = conditioned(model, settings | {"unconditional": 3})
    one, none = (model(x, sigma, torch.full((4,), label)) for label in (1, 3))
    close(guided(x, sigma), none + 3 * (one - none))
    with pytest.raises(UserError, match="no classes"):
        load_model(saved(tmp_path / "none", unet("ddpm"), scheduler))(x, sigma, labels)


def test_learned_variances_are_left_out(tmp_path):
    net, scheduler = unet("ddpm", out_channels=6), diffusers.DDPMScheduler(variance_type="learned_range")
    model = load_model(saved(tmp_path, net, scheduler))
    x, kept = torch.randn(2, 3, 8, 8), scheduler.alphas_cumprod[10]
    sigma = ((1 - kept) / kept).sqrt()
    close(model(x / kept.sqrt(), sigma), x / kept.sqrt() - sigma * net(x, 10).sample[:, :3])


def test_where_the_scheduler_may_lie(tmp_path):
    folder, scheduler = (
        saved(tmp_path / "whole", unet("ddpm"), diffusers.DDPMScheduler()),
        {"_class_name": "DDIMScheduler"},
    )
    levels = load_model(folder).sigma_max
    assert load_model(folder / "unet").sigma_max == levels
    bent = load_model(folder, config=scheduler | {"beta_schedule": "scaled_linear"})
    assert bent.sigma_max != levels and bent.card["scheduler"] == "DDIMScheduler"
    (folder / "scheduler" / "scheduler_config.json").rename(folder / "unet" / "scheduler_config.json")
    assert load_model(folder / "unet").sigma_max == levels
    (folder / "unet").rename(tmp_path / "alone")
    assert load_model(tmp_path / "alone").sigma_max == levels


LAYERS = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
BLOCKS = {"mid_block": "mid", "down_blocks": "downsample_blocks", "up_blocks": "upsample_blocks"}


@pytest.mark.parametrize("old", [LAYERS, LAYERS | BLOCKS, {"downsamplers.0.conv": "downsamplers.0.op"}])
def test_names_of_older_files(old, tmp_path):
    net = unet("ddpm")
    folder = saved(tmp_path, net, diffusers.DDPMScheduler())
    given = load_file(folder / WEIGHTS)
    for new, name in old.items():
        given = {f".{key}".replace(f".{new}.", f".{name}.")[1:]: tensor for key, tensor in given.items()}
    assert len(given.keys() - net.state_dict().keys()) >= len(old)
    save_file(given, folder / WEIGHTS, {"format": "pt"})
    loaded = load_model(folder).net.unet
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in net.state_dict().items())
    save_file(net.state_dict() | {name: tensor.clone() for name, tensor in given.items()}, folder / WEIGHTS)
    load_model(folder)
    name = next(iter(given.keys() - net.state_dict().keys()))
    save_file(net.state_dict() | {name: given[name] + 1}, folder / WEIGHTS)
    with pytest.raises(UserError, match="under an old name too, with other numbers"):
        load_model(folder)
    save_file(net.state_dict() | {"more": torch.zeros(2)}, folder / WEIGHTS)
    with pytest.raises(UserError, match="tensor 'more' is unexpected"):
        load_model(folder)


def test_keys_of_older_configurations(tmp_path):
    net = unet("ddpm", norm_eps=1e-3)
    folder = saved(tmp_path, net, diffusers.DDPMScheduler())
    path, old = folder / "unet" / "config.json", {new: old for old, new in diffusers_config.OLD_NETWORK_KEYS.items()}
    about = json.loads(path.read_text())
    path.write_text(json.dumps({old.get(name, name): value for name, value in about.items()}))
    assert old.keys() <= about.keys()
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(1.0)
    older = load_model(folder)(x, sigma)
    path.write_text(json.dumps(about))
    assert torch.equal(older, load_model(folder)(x, sigma))
    path.write_text(json.dumps(about | {"resnet_eps": 1e-6}))
    with pytest.raises(UserError, match="has resnet_eps=1e-06 and norm_eps=0.001, two names of one thing"):
        load_model(folder)
    path.write_text(json.dumps(about | {"_class_name": "UNetUnconditionalModel"}))
    with pytest.raises(UserError, match="UNetUnconditionalModel"):
        load_model(folder)


def test_runs_are_named_by_all_that_makes_the_denoiser(tmp_path):
    names = set()
    for prediction in ("epsilon", "v_prediction"):
        for flip in (False, True):
            folder = tmp_path / f"{prediction}{flip}"
            scheduler = diffusers.DDPMScheduler(prediction_type=prediction)
            names.add(fingerprint(load_model(saved(folder, unet("ddpm", flip_sin_to_cos=flip), scheduler))))
            names.add(fingerprint(load_model(folder)))
    assert len(names) == 4


@pytest.mark.parametrize(
    ("kind", "scheduler"), [("ncsnpp", "ScoreSdeVeScheduler"), ("ddpm", "DDPMScheduler"), ("ddpm", "DDIMScheduler")]
)
def test_a_converted_folder_samples_the_same_bits(tmp_path, kind, scheduler):
    folder = saved(tmp_path / "exp" / "church", unet(kind), made(scheduler))
    card = convert(folder, tmp_path / "own.safetensors")
    assert card["source"] == "church" and len(card["source_sha256"]) == 64
    assert {"name": "exp/church", "here": True, "about": "a folder of diffusers"} in known(tmp_path)
    for model, out in ((folder, "a"), (tmp_path / "own.safetensors", "b")):
        run(str(model), "dpmpp_2m", nfe=2, num=2, out=tmp_path / out, progress=False)
    assert torch.equal(load_images(tmp_path / "a"), load_images(tmp_path / "b"))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": scheduler, "more": 1}))
    assert convert(folder, tmp_path / "own.safetensors")["source_sha256"] != card["source_sha256"]


def test_configurations_of_other_sizes_take_no_memory(tmp_path):
    folder = saved(tmp_path, unet("ddpm"), diffusers.DDPMScheduler())
    for name, change, match in (
        ("unet/config.json", {"block_out_channels": [2**14, 2**15]}, "holds .* numbers, the network of its config"),
        ("unet/config.json", {"layers_per_block": 10**9}, "layers_per_block in .* must be a whole number"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "num_train_timesteps .* must be a whole"),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(json.dumps(json.loads(before) | change))
        with pytest.raises(UserError, match=match):
            load_model(folder)
        (folder / name).write_text(before)


def test_folders_that_cannot_be_used(tmp_path, caplog, monkeypatch):
    folder = saved(tmp_path / "bad", unet("ddpm"), diffusers.DDPMScheduler())

    def refused(match, name, **changes):
        """``changes`` of a JSON file; text is written as it is, None removes the file."""
        file = folder / name
        before = file.read_bytes()
        if changes:
            file.write_text(json.dumps(json.loads(before) | changes))
        else:
            file.unlink()
        answered(match)
        file.write_bytes(before)

    def answered(match, path=folder):
        with pytest.raises(UserError, match=match) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)

    network, steps = "unet/config.json", "scheduler/scheduler_config.json"
    refused("neither unet/config.json nor config.json", network)
    refused("no scheduler/scheduler_config.json", steps)
    refused("holds no diffusion_pytorch_model.safetensors", WEIGHTS)
    refused("unknown network .*'UNet2DConditionModel'", network, _class_name="UNet2DConditionModel")
    refused("unknown scheduler .*did you mean 'DDPMScheduler'", steps, _class_name="DDPScheduler")
    refused("unknown prediction_type .*'flow'", steps, prediction_type="flow")
    refused("scheduler of .*bent", steps, beta_schedule="bent")
    refused("noise levels that rise", steps, trained_betas=[0.1, 0.0, 0.1])
    refused("other times", steps, _class_name="EulerDiscreteScheduler", timestep_type="continuous")
    refused("network of .*cannot be made", network, down_block_types=["NoBlock", "DownBlock2D"])
    refused("network of .*cannot be made.*shape", network, block_out_channels=[8, 32])
    logging.getLogger("diffusers").addHandler(caplog.handler)  # it passes nothing on
    refused("is missing", network, num_class_embeds=3)
    refused("is unexpected", network, add_attention=False)
    assert not [r for r in caplog.records if "weights" in r.message], "one sentence, not the library's five"
    logging.getLogger("diffusers").removeHandler(caplog.handler)
    refused("size of the images", network, sample_size=None)
    refused("class_embed_type", network, class_embed_type="identity")
    refused("'vqvae'", "model_index.json", vqvae=["diffusers", "VQModel"])

    saved(tmp_path / "fourier", unet("ncsnpp"), diffusers.DDPMScheduler())
    answered("ScoreSdeVeScheduler and not with DDPMScheduler", tmp_path / "fourier")
    answered("neither", tmp_path)
    for name in (network, steps, "model_index.json"):
        before = (folder / name).read_bytes()
        for text, match in (('{"a": ', "cannot be read as JSON"), ("[]", "must hold a JSON object")):
            (folder / name).write_text(text)
            answered(match)
        (folder / name).write_bytes(before)
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 5, 200, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        answered("truncated")
    (folder / WEIGHTS).write_bytes(whole)
    load_model(folder)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    answered(r"pip install 'dmcmc-core\[diffusers\]'")


# ---- what people bring


def folder_of(path, net=None, scheduler=None, **how):
    """A pipeline's folder, its network saved as ``how`` says."""
    saved(path, net or unet("ddpm"), scheduler or diffusers.DDPMScheduler())
    if how:
        (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        (net or unet("ddpm")).save_pretrained(path / "unet", **how)
    return path


def same_weights(model, net, half=False):
    own = model.net.unet.state_dict()
    return all(torch.equal(own[name], t.half().float() if half else t) for name, t in net.state_dict().items())


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refuses(folder, match, **how):
    with pytest.raises(UserError, match=match) as caught:
        load_model(folder, **how)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "how",
    [
        {"variant": "fp16"},
        {"max_shard_size": "10KB"},
        {"variant": "fp16", "max_shard_size": "10KB"},
        {"variant": "ema"},
    ],
)
def test_variants_and_shards_are_read(tmp_path, how):
    net = unet("ddpm")
    folder = folder_of(tmp_path / "exp" / "it", net, **how)
    assert not (folder / WEIGHTS).exists()
    assert same_weights(load_model(folder), net)
    assert [row["name"] for row in known(tmp_path) if "diffusers" in row["about"]] == ["exp/it"]
    held = {path.name for path in folders.files(folder)}
    assert {path.name for path in (folder / "unet").iterdir()} < held and "scheduler_config.json" in held
    digest = convert(folder, tmp_path / "own.safetensors")["source_sha256"]
    part = sorted((folder / "unet").glob("*.safetensors"))[-1]
    tensors = load_file(part)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] + 1}, part, {"format": "pt"})
    assert convert(folder, tmp_path / "own.safetensors")["source_sha256"] != digest


def test_half_precision_is_computed_in_full(tmp_path):
    net = unet("ddpm")
    half = unet("ddpm").half()
    model = load_model(folder_of(tmp_path, half, variant="fp16"))
    assert same_weights(model, net, half=True) and {p.dtype for p in model.net.unet.parameters()} == {torch.float32}


def test_of_two_things_a_rule_takes_one_and_says_so_once(tmp_path, caplog):
    """Averaged before raw, full precision before half; a path names what else could be meant."""
    raw, averaged = unet("ddpm"), unet("ddpm")
    averaged.conv_in.bias.add_(1)
    training_utils = pytest.importorskip("diffusers.training_utils")
    logging.getLogger("dmcmc_core").addHandler(caplog.handler)
    try:
        folder = folder_of(tmp_path / "a", raw)
        ema = training_utils.EMAModel(averaged.parameters(), model_cls=type(raw), model_config=raw.config)
        ema.save_pretrained(folder / "unet_ema")  # its configuration holds the decay and more
        assert same_weights(load_model(folder), averaged) and same_weights(load_model(folder), averaged)
        (said,) = [r.getMessage() for r in caplog.records]
        assert "the averaged ones are taken" in said and str(folder / "unet") in said
        assert same_weights(load_model(folder / "unet"), raw)
        caplog.clear()
        for variant, wanted in (("fp16", raw), ("non_ema", raw), ("ema", averaged)):
            folder = folder_of(tmp_path / variant, raw)
            other = averaged if variant == "ema" else unet("ddpm", flip_sin_to_cos=True).half()
            other.save_pretrained(folder / "unet", variant=variant)
            (folder / "unet" / "config.json").write_text(json.dumps(dict(raw.config) | {"_class_name": "UNet2DModel"}))
            assert same_weights(load_model(folder), wanted)
            taken = f"diffusion_pytorch_model.{variant}.safetensors" if wanted is averaged else WEIGHTS[5:]
            assert caplog.records[-1].getMessage().endswith(f"{taken} is taken")
    finally:
        logging.getLogger("dmcmc_core").removeHandler(caplog.handler)
    folder = folder_of(tmp_path / "twice", raw, max_shard_size="10KB")
    save_file(raw.state_dict(), folder / WEIGHTS, {"format": "pt"})
    refuses(folder, "index.json and diffusion_pytorch_model.safetensors|safetensors and .*: keep the one that is meant")


def test_shards_that_do_not_fit_their_index_are_refused(tmp_path):
    folder = folder_of(tmp_path / "bad", max_shard_size="10KB")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    before, places = index.read_text(), json.loads(index.read_text())["weight_map"]
    name, shard = next(iter(places.items()))
    other = next(file for file in places.values() if file != shard)
    for changed, match in (
        ({name: "../secret.safetensors"}, "places tensor .* which is no safetensors file"),
        ({name: "absent.safetensors"}, "names absent.safetensors, which is not there"),
        ({name: other}, "does not fit its index"),
        ({name: 3}, "places tensor"),
        ({"more": other}, "places there, where it is missing: tensor 'more'"),
    ):
        edit(index, weight_map=places | changed)
        refuses(folder, match)
    edit(index, weight_map=[1])
    refuses(folder, "must say under 'weight_map'")
    index.write_text("{")
    refuses(folder, "cannot be read as JSON")
    index.write_text(before)
    (folder / "unet" / shard).write_bytes((folder / "unet" / shard).read_bytes()[:-1])
    refuses(folder, f"{shard} cannot be read as safetensors, it is truncated")
    (folder / "unet" / shard).unlink()
    refuses(folder, f"names {shard}, which is not there")
    index.unlink()
    refuses(folder, "holds no diffusion_pytorch_model.safetensors, but diffusion_pytorch_model-0")


def test_a_folder_of_pickles_says_so(tmp_path):
    folder = folder_of(tmp_path)
    (folder / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    refuses(folder, "but diffusion_pytorch_model.bin: convert its weights, only safetensors are read here")
    (folder / "unet" / "diffusion_pytorch_model.bin").rename(folder / "unet" / "README.md")
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert str(caught.value).endswith("holds no diffusion_pytorch_model.safetensors, but README.md")


def test_prefixes_of_wrapped_networks_are_taken_off(tmp_path):
    net = unet("ddpm")
    folder = folder_of(tmp_path, net)
    save_file({f"module._orig_mod.{k}": t for k, t in net.state_dict().items()}, folder / WEIGHTS, {"format": "pt"})
    assert same_weights(load_model(folder), net)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", folders.EDM)
def test_networks_of_edm_schedulers(tmp_path, name, prediction):
    """The denoiser is what the scheduler makes of the network's answer, at any level."""
    net, scheduler = (
        unet("ddpm"),
        made(name, prediction_type=prediction, sigma_data=0.7, sigma_min=0.01, sigma_max=30.0),
    )
    model = load_model(saved(tmp_path / "edm", net, scheduler))
    assert (model.sigma_min, model.sigma_max, model.data_range) == (0.01, 30.0, (-1.0, 1.0))
    for sigma in torch.tensor([0.01, 0.7, 5.0, 30.0]):
        x = torch.randn(2, 3, 8, 8) * (1 + sigma)
        answer = net(scheduler.precondition_inputs(x, sigma), scheduler.precondition_noise(sigma)).sample
        close(model(x, sigma), scheduler.precondition_outputs(x, answer, sigma))
    convert(tmp_path / "edm", tmp_path / "own.safetensors")
    own = load_model(tmp_path / "own.safetensors")
    assert torch.equal(own(x, sigma), model(x, sigma)) and fingerprint(own) == fingerprint(model)
    edit(tmp_path / "edm" / "scheduler" / "scheduler_config.json", sigma_data=0.5)
    assert fingerprint(load_model(tmp_path / "edm")) != fingerprint(model)


def test_edm_schedulers_that_make_no_denoiser_are_refused(tmp_path):
    for name, options, match in (
        ("a", {"prediction_type": "sample"}, "unknown prediction_type .*'sample': known are epsilon, v_prediction"),
        ("b", {"sigma_data": 0.0}, "sigma_data in the scheduler of .* must be a number above 0, not 0.0"),
        ("c", {"sigma_min": 90.0}, "sigma_min and sigma_max of .* that rise"),
    ):
        refuses(saved(tmp_path / name, unet("ddpm"), diffusers.EDMEulerScheduler(**options)), match)
    refuses(saved(tmp_path / "d", unet("ncsnpp"), diffusers.EDMEulerScheduler()), "not with EDMEulerScheduler")


def test_unclip_has_the_cosine_betas_of_the_others(tmp_path):
    net = unet("ddpm")
    models = [
        load_model(saved(tmp_path / type(s).__name__, net, s))
        for s in (diffusers.UnCLIPScheduler(), diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    ]
    assert torch.equal(*(model.net.log_levels for model in models))


SCHEDULER, INDEX, NETWORK = "scheduler/scheduler_config.json", "model_index.json", "unet/config.json"


def test_what_a_scheduler_ignores_is_honoured(tmp_path):
    """A flag that stays when schedulers are changed, and keys of the library's first versions."""
    folder = folder_of(tmp_path / "zero", scheduler=diffusers.PNDMScheduler())
    plain = load_model(folder).net.log_levels
    edit(folder / SCHEDULER, rescale_betas_zero_snr=True)
    same = load_model(saved(tmp_path / "ddim", unet("ddpm"), diffusers.DDIMScheduler(rescale_betas_zero_snr=True)))
    zero = load_model(folder).net.log_levels
    assert torch.equal(zero, same.net.log_levels) and not torch.equal(zero, plain[: len(zero)])
    old = {"_class_name": "DDPMScheduler", "predict_epsilon": False, "timesteps": 500, "tensor_format": "pt"}
    model = load_model(folder, config=old)
    assert model.card["prediction"] == "sample" and len(model.net.log_levels) == 500
    assert load_model(folder, config=old | {"predict_epsilon": True}).card["prediction"] == "epsilon"


@pytest.mark.parametrize(
    ("file", "changes", "match"),
    [
        (SCHEDULER, {"predict_epsilon": False, "prediction_type": "epsilon"}, "predict_epsilon=False and prediction_t"),
        (SCHEDULER, {"predict_epsilon": "no"}, "predict_epsilon in .* must be true or false, not 'no'"),
        (SCHEDULER, {"timesteps": 500}, "timesteps=500 and num_train_timesteps=1000"),
        (SCHEDULER, {"snr_shift_scale": 3.0}, "snr_shift_scale=3.0, which DDPMScheduler ignores"),
        (SCHEDULER, {"timestep_type": "continuous"}, "other times than its timesteps, by timestep_type='continuous'"),
        (SCHEDULER, {"use_flow_sigmas": True}, "other times than its timesteps, by use_flow_sigmas=True"),
        (SCHEDULER, {"rescale_betas_zero_snr": "False"}, "rescale_betas_zero_snr in .* must be true or false"),
        (SCHEDULER, {"beta_start": "1e-4"}, "beta_start in .* must be a number, not '1e-4'"),
        (SCHEDULER, {"_class_name": "LCMScheduler"}, "LCMScheduler, which goes with consistency models"),
        (INDEX, {"prediction_type": "v_prediction"}, "prediction_type='v_prediction', and its scheduler 'epsilon'"),
        (INDEX, {"scheduler": ["diffusers", "EDMEulerScheduler"]}, "a scheduler EDMEulerScheduler, and its config"),
        (NETWORK, {"prediction_type": "v_prediction"}, "has prediction_type='v_prediction', which diffusers ignores"),
        (NETWORK, {"resnet_skip_time_act": True}, "has resnet_skip_time_act=True, which diffusers ignores"),
        (NETWORK, {"flip_sin_to_cos": "False"}, "flip_sin_to_cos in .* must be true or false, not 'False'"),
        (NETWORK, {"norm_eps": "1e-06"}, "norm_eps in .* must be a number, not '1e-06'"),
    ],
)
def test_what_the_library_ignores_and_changes_the_network_is_refused_by_name(tmp_path, file, changes, match):
    folder = folder_of(tmp_path)
    load_model(folder)
    edit(folder / file, **changes)
    refuses(folder, match)


def test_what_changes_nothing_is_taken(tmp_path):
    folder = folder_of(tmp_path)
    before = load_model(folder)
    edit(folder / NETWORK, resnet_skip_time_act=False, cross_attention_dim=1280, prediction_type="epsilon", decay=0.99)
    edit(folder / INDEX, prediction_type="epsilon", scheduler=["diffusers", "DDIMScheduler"])
    edit(folder / SCHEDULER, snr_shift_scale=1.0, timestep_type="discrete", use_karras_sigmas=True)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(2.0)
    assert torch.equal(load_model(folder)(x, sigma), before(x, sigma))


def test_a_class_of_the_library_is_no_misspelt_one(tmp_path):
    folder = folder_of(tmp_path)
    for name in ("FlowMatchEulerDiscreteScheduler", "IPNDMScheduler", "SomeScheduler"):
        edit(folder / SCHEDULER, _class_name=name)
        refuses(folder, f"unknown scheduler in .*, '{name}': known are ")
    edit(folder / SCHEDULER, _class_name="DDPMSchduler")
    refuses(folder, "did you mean 'DDPMScheduler'")


def test_a_key_given_twice_in_a_folder_is_refused(tmp_path):
    folder = folder_of(tmp_path)
    text = (folder / NETWORK).read_text()
    (folder / NETWORK).write_text(text.replace("{", '{"freq_shift": 3,', 1))
    refuses(folder, "cannot be read as JSON: key 'freq_shift' is given twice")
