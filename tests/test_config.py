"""Every option of every configuration group composes and builds; bad values are refused by key, before any work."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from benchmarks.hall import hall
from sensing import preflight, runs
from sensing.baselines import CloudGrid, GridOmp, GridSbl
from sensing.baselines.grid_estimators import WIDE
from sensing.cli import conf_dir
from sensing.coarse.detection import PathDetector
from sensing.coarse.localization import CoarseLocalizer
from sensing.coarse.paper import PaperLocalizer
from sensing.data.dictionary import DictionaryDataModule
from sensing.data.drops import DropDataModule
from sensing.data.scenes import SceneDataModule
from sensing.errors import ConfigError, DomainError, SensingError
from sensing.fusion.learned import LearnedFusion
from sensing.fusion.weights import FusionWeights
from sensing.inference.dense_turbo import DenseTurbo
from sensing.inference.iteration import Iteration
from sensing.inference.unrolled import Unrolled
from sensing.losses import BoundNormalisedLoss, FusionLoss, GenieRatioLoss
from sensing.simulation import Impairments
from sensing.simulation.dictionary import DictionarySampler
from sensing.simulation.drops import DropSampler

CONF = Path(conf_dir())
COMMANDS = ("train", "evaluate")
PLUGINS = {"submitit_slurm": "hydra_plugins.hydra_submitit_launcher", "joblib": "hydra_plugins.hydra_joblib_launcher"}


def composed(command: str, *overrides: str, output_dir: str = "unused") -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, [f"output_dir={output_dir}", *overrides])


def options_of(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def commands_of(path: Path) -> list[list[str]]:
    """The command lines in a file's header comment."""
    return [line.split() for line in re.findall(r"^# python (.*)$", path.read_text(), re.M)]


def targets(node, where=""):
    """(key, mapping) of every `_target_` below a node of plain containers."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from targets(value, f"{where}.{key}" if where else str(key))


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_compose(command):
    config = composed(command)
    assert config.scene.name == {"train": "hall_hard", "evaluate": "hall"}[command]
    assert config.name == command


CHOICES = [
    (command, group, option)
    for command, groups in {
        "train": (
            "scene",
            "array",
            "ofdm",
            "estimator",
            "loss",
            "optimizer",
            "trainer",
            "logger",
            "callbacks",
            "detector",
            "impairments",
        ),
        "evaluate": ("scene", "array", "ofdm", "data", "detector", "impairments"),
    }.items()
    for group in groups
    for option in options_of(group)
    # these refer to `available`, of evaluate.py alone
    if not (group == "estimator" and option in ("ideal_sync", "paper_ideal", "omp", "ols", "em_sbl"))
]


@pytest.mark.parametrize(("command", "group", "option"), CHOICES)
def test_every_option_composes_and_its_targets_accept_its_keys(command, group, option):
    """Each `_target_` exists and its signature takes the keys of the YAML."""
    plain = OmegaConf.to_container(composed(command, f"{group}={option}"), resolve=True)
    for where, node in targets(plain):
        target = get_object(node["_target_"])
        parameters = inspect.signature(target).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        keys = {key for key in node if not key.startswith("_")} - ({"carrier_hz"} if where == "ofdm" else set())
        keys -= {"source"} if where == "data" else set()
        # the learner's own, taken out before the optimizer is built
        keys -= {"final_lr_fraction", "layer_lr_fraction"} if where == "optimizer" else set()
        assert keys <= set(parameters), f"{where}: {node['_target_']} does not take {keys - set(parameters)}"


@pytest.mark.parametrize("scene", options_of("scene"))
@pytest.mark.parametrize("array", options_of("array"))
def test_every_scene_simulates_with_every_array(scene, array):
    simulator = runs.build_simulator(
        composed("evaluate", f"scene={scene}", f"array={array}", "ofdm.num_subcarriers=128")
    )
    y = simulator.examples("test", range(2)).observation.y
    assert y.shape == (2, len(simulator.deployment.bs_position), len(simulator.deployment.antenna_local), 8)
    assert torch.isfinite(torch.view_as_real(y)).all()


@pytest.mark.parametrize("name", [name for name in options_of("estimator") if name not in ("fusion", "dense")])
def test_every_estimator_builds(name):
    config = composed("evaluate", f"estimators=[{name}]")
    (estimator,) = runs.build_estimators(config).values()
    assert estimator.name == name


def defaults(function) -> dict:
    """Keyword parameters of a function or class with their defaults."""
    parameters = inspect.signature(function).parameters.items()
    return {name: each.default for name, each in parameters if each.default is not each.empty}


def test_yaml_and_python_have_the_same_defaults():
    """An object built in a notebook without arguments is the one that the commands use."""
    train, evaluate = (OmegaConf.to_container(composed(command), resolve=True) for command in COMMANDS)
    unrolled = {name: value for name, value in defaults(Unrolled).items() if name != "dtype"} | defaults(Iteration)
    fused = OmegaConf.to_container(composed("train", "experiment=fusion_train"), resolve=True)
    dense = OmegaConf.to_container(composed("train", "experiment=dense_train"), resolve=True)
    law = {"bs_position", "domain", "bias", "bias_scale_m"}
    classical = evaluate["available"]["classical"]
    for node, wanted in (
        (train["detector"], defaults(PathDetector)),
        (
            train["data"],
            {**defaults(SceneDataModule), "simulator": None, "snr_db": [5, 15], "amplitude": [4.0, 14.0]},
        ),
        (train["impairments"], defaults(Impairments)),
        (evaluate["impairments"], defaults(Impairments)),
        (train["loss"], defaults(BoundNormalisedLoss)),
        (train["fusion"]["weights"], defaults(FusionWeights)),
        (fused["estimator"], defaults(LearnedFusion)),
        (fused["loss"], defaults(FusionLoss)),
        (dense["estimator"], defaults(DenseTurbo)),
        (dense["loss"], defaults(GenieRatioLoss)),
        (
            {name: value for name, value in dense["data"].items() if name != "sampler"},
            defaults(DictionaryDataModule) | {"snr_db": [-5, 30]},
        ),
        (
            {name: value for name, value in dense["dictionary"].items() if name != "deployment"},
            {
                name: [list(each) if isinstance(each, tuple) else each for each in value]
                if isinstance(value, tuple)
                else value
                for name, value in defaults(DictionarySampler).items()
            },
        ),
        (
            {name: value for name, value in fused["data"].items() if name != "sampler"},
            defaults(DropDataModule) | {"modalities": ["hybrid", "toa", "hybrid", "aoa"], "stations": []},
        ),
        (
            {name: value for name, value in fused["drops"].items() if name not in law},
            {name: value for name, value in defaults(DropSampler).items() if name not in law},
        ),
        (classical["localizer"], {k: v for k, v in defaults(CoarseLocalizer).items() if k != "fusion"}),
        (classical["unrolled"], unrolled),
        (evaluate["available"]["paper"]["localizer"], defaults(PaperLocalizer)),
        (evaluate["available"]["em_sbl"]["grid"], defaults(CloudGrid)),
        (evaluate["available"]["omp"]["grid"], defaults(CloudGrid) | {"extent": WIDE}),
        *(
            (evaluate["available"][name] | dict.fromkeys(("detector", "grid", "localizer")), defaults(kind))
            for name, kind in (("omp", GridOmp), ("em_sbl", GridSbl))
        ),
    ):
        written = {key: value for key, value in node.items() if key not in ("_target_", "dtype")}
        assert written == wanted


def test_hall_in_yaml_is_the_hall_in_python():
    """The same scenes and observations as from the constructors, to the last bit."""
    for scene, shared in (("hall", 8), ("hall_hard", 6)):
        wanted = hall(shared, seed=5)
        built = runs.build_simulator(composed("train", f"scene={scene}", "seed=5"))
        y = [each.examples("train", [3]).observation.y for each in (built, wanted)]
        assert torch.equal(*y)


def test_fusion_trains_on_drops_alone():
    check = preflight.check_training
    check(runs.plain(composed("train", "experiment=fusion_train", "objective=val/error_m_90")))
    for overrides, wanted in (
        (["learner=sensing.learning.FusionLearner"], "estimator and data must be fusion and drops"),
        (["experiment=fusion_train", "data=training"], "estimator and data must be fusion and drops"),
        (["experiment=fusion_train", "learner=sensing.learning.Learner"], "estimator must have something to learn"),
        (["experiment=fusion_train", "objective=val/nmse_db"], "objective must be one of"),
        (["learner=torch.nn.Linear"], "learner must be one of"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            check(runs.plain(composed("train", *overrides)))


def test_dense_trains_on_dictionaries_alone():
    check = preflight.check_training
    check(runs.plain(composed("train", "experiment=dense_train", "objective=val/above_genie_db")))
    for overrides, wanted in (
        (["learner=sensing.learning.DenseLearner"], "estimator and data must be dense and dictionary"),
        (["experiment=dense_train", "data=training"], "estimator and data must be dense and dictionary"),
        (["experiment=dense_train", "estimator=fusion"], "estimator and data must be dense and dictionary"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            check(runs.plain(composed("train", *overrides)))


def test_scene_brings_array_and_ofdm_and_both_can_be_overridden():
    assert composed("train", "scene=urban").ofdm.carrier_hz == 3.5e9
    assert composed("train", "scene=urban", "ofdm=hall").ofdm.carrier_hz == 28e9
    assert composed("train", "scene=urban", "array=ula").array.num == 16


def test_offsets_are_in_units_of_one_over_bandwidth():
    simulator = runs.build_simulator(
        composed(
            "evaluate",
            "scene=urban",
            "scene.clock_offset_std_over_bandwidth=inf",
            "scene.true_clock_offset_std_over_bandwidth=100",
        )
    )
    assert simulator.deployment.clock_offset_std == float("inf")
    assert simulator.sampler.clock_offset_std == pytest.approx(100 / 30.72e6)
    narrow = runs.build_simulator(composed("evaluate", "scene.clock_offset_std_over_bandwidth=0.1"))
    assert float(narrow.deployment.clock_offset_std) == pytest.approx(0.1 / 122.88e6)


@pytest.mark.parametrize(
    "path",
    [*sorted((CONF / "experiment").glob("*.yaml")), *sorted((CONF / "sweep").glob("*.yaml"))],
    ids=lambda p: p.stem,
)
def test_every_experiment_and_sweep_composes_by_the_command_in_its_header(path):
    commands = commands_of(path)
    assert commands, "the header must say `# python train.py experiment=...`"
    for script, *overrides in commands:
        launcher = re.search(r"override /hydra/launcher: (\w+)", path.read_text())
        if launcher and importlib.util.find_spec(PLUGINS[launcher[1]]) is None:
            pytest.skip(f"the launcher {launcher[1]} is not installed")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(script.removesuffix(".py"), ["output_dir=x", *overrides])
        assert config.name not in COMMANDS, "an experiment's results go to a folder of its name"
        check = preflight.check_training if script == "train.py" else preflight.check_evaluation
        if OmegaConf.select(config, "data.path") is None:
            check(runs.plain(config))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.num_scenes=-1", r"eval\.num_scenes must be a whole number >= 1, got -1"),
        ("eval.num_scenes=many", r"eval\.num_scenes must be a whole number >= 1, got 'many'"),
        ("eval.batch_size=0", r"eval\.batch_size must be a whole number >= 1, got 0"),
        ("eval.snr_db=[0,nan]", r"eval\.snr_db must be a list of finite numbers .*, got \[0, nan\]"),
        ("eval.snr_db=10", r"eval\.snr_db must be a list"),
        ("calibration=hall_hard", r"estimators must name 'calibrated', which calibration is for, got \['classical', "),
        ("estimators=[classical,best]", r"estimators must name .*'classical'.*, got unknown \['best'\]"),
        ("estimators=[]", r"estimators must be a list of names"),
        (
            "checkpoint=absent.ckpt",
            r"checkpoint must be an existing file or one of .*, got 'absent\.ckpt': not found",
        ),
        (
            "checkpoint=hal",
            r"checkpoint must be .* one of the shipped \[.*'hall', 'hall_hard'.*\], got 'hal': not found",
        ),
        ("checkpoint=3", r"checkpoint must be the path of a checkpoint or one of the shipped .*, got 3"),
        ("seed=-1", r"seed must be a whole number >= 0, got -1"),
        ("data=file", r"data\.path must be the path of a file \(say data\.path=FILE\), got None"),
        ("data.split=dev", r"data\.split must be one of .*, got 'dev'"),
        ("torch_threads=0", r"torch_threads must be a whole number >= 1, got 0"),
        ("scene.clock_offset_std_over_bandwidth=-1", r"scene\.clock_offset_std_over_bandwidth must be a number >= 0"),
        (
            "scene.clock_offset_std_over_bandwidth=inf",
            r"scene\.true_clock_offset_std_over_bandwidth must be a number >= 0",
        ),
        ("+eval.scenes=3", r"eval must have no other keys than .*num_scenes.*, got scenes"),
        ("+data.test_scenes=3", r"data must have no other keys than .*, got test_scenes"),
        ("+scene.num_shared=3", r"scene must have no other keys than .*, got num_shared"),
        ("ofdm.spacing_hz=0", r"ofdm\.spacing_hz must be a number > 0, got 0"),
        ("ofdm.pilot_step=abc", r"ofdm\.pilot_step must be a whole number >= 1, got 'abc'"),
    ],
)
def test_bad_value_is_refused_by_key_before_any_work(override, message):
    with pytest.raises(SensingError, match=message):
        preflight.check_evaluation(runs.plain(composed("evaluate", override)))


def test_file_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"data\.path must be an existing file, got 'no\.h5'"):
        preflight.check_evaluation(runs.plain(composed("evaluate", "data=file", "data.path=no.h5")))


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("array.num_y=0", ConfigError, r"num_y, num_z >= 1.* \(in array\)"),
        ("array=ula array.num=0", ConfigError, r"ula needs num >= 1.* \(in array\)"),
        ("+array.foo=1", ConfigError, r"array must fit sensing\.arrays\.upa, got: .*foo"),
        ("array._target_=sensing.arrays.nope", ConfigError, r"array must fit sensing\.arrays\.nope"),
        ("scene.sampler.num_shared=-1", ConfigError, r"num_shared.*-1.*\(in scene\.sampler\)"),
        ("scene.sampler.gains=loud", ConfigError, r"gains must be rayleigh or constant_modulus, got 'loud'"),
        ("scene.deployment.region=[[0,0,0],[-1,1,1]]", DomainError, r"region must be .* \(in scene\.deployment\)"),
    ],
)
def test_error_of_a_constructor_keeps_its_type_and_names_the_key(override, kind, message):
    with pytest.raises(kind, match=message) as caught:
        runs.build_simulator(composed("evaluate", *override.split()))
    assert isinstance(caught.value, SensingError)


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_key_and_unknown_option_are_hydras_clear_errors(command):
    with pytest.raises(ConfigCompositionException, match="Could not override 'sede'"):
        composed(command, "sede=1")
    with pytest.raises(Exception, match=r"(?s)Could not find 'scene/moon'.*hall_hard"):
        composed(command, "scene=moon")


def test_an_experiment_of_the_other_command_is_refused():
    with pytest.raises(
        SensingError,
        match=r"train\.py must get a configuration or experiment of its own, got one with \['estimators', 'eval'\]",
    ):
        preflight.check_training(runs.plain(composed("train", "experiment=hall_hard_sigma")))
    with pytest.raises(ConfigError, match="data must have no other keys"):
        preflight.check_evaluation(runs.plain(composed("evaluate", "experiment=hard_starts")))


def test_every_key_of_the_yaml_files_has_a_unit_or_a_meaning():
    """Physical keys are commented: a file of scene, array or ofdm has as many comments as keys with values."""
    for group in ("scene", "array", "ofdm", "detector"):
        for path in (CONF / group).glob("*.yaml"):
            for line in path.read_text().splitlines():
                key = re.match(r"^\s*(\w+): \S", line)
                if key and key[1] not in ("_target_", "name"):
                    assert "#" in line, f"{path.name}: {line.strip()}"


def test_only_the_front_ends_that_estimators_name_are_built():
    config = composed(
        "evaluate", "+front_ends.broken._target_=sensing.coarse.Nothing", "estimators=[nomp_ls,classical]"
    )
    built = runs.build_front_ends(config, runs.build_estimators(config))
    assert [(name, type(each)) for name, each in built.items()] == [("nomp", PathDetector)]
    genie = composed("evaluate", "estimators=[genie_lmmse]")
    assert runs.build_front_ends(genie, runs.build_estimators(genie)) == {}
    absent = composed("evaluate", "estimators=[nomp_ls]", "available.nomp_ls.front_end=radar")
    with pytest.raises(ConfigError, match=r"front_ends must hold the 'radar' of nomp_ls, got \['music', 'nomp'\]"):
        runs.build_front_ends(absent, runs.build_estimators(absent))
