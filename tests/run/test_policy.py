"""A loaded policy in the hands of another program."""

import copy
import multiprocessing
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import diffcps
from diffcps.algorithms import diffusion_bc
from diffcps.data.scaling import Scaling
from diffcps.records.folder import RunFolder
from diffcps.run.policy import Policy, checkpoint_path
from tests.problems import SPEC, random_dataset

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    config = diffusion_bc.Config(width=8, depth=1, num_steps=2, batch_size=8)
    settings = diffcps.Settings(env="none", updates=2, eval_every=2, log_every=2, seeds=(3, 4))
    diffcps.train(config, random_dataset(), settings, out=out)
    return out


@pytest.fixture
def policy(folder) -> Policy:
    return diffcps.load_policy(folder, "selected", member=1, seed=5)


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e39])
def test_observations_that_are_not_finite_are_refused_by_their_place(policy, number):
    observation = np.zeros((2, 4, 3))
    observation[1, 2, 0] = number
    text = re.escape(str(number))
    with pytest.raises(diffcps.UserError, match=f"row 1, 2 of the observations has {text} at dimension 0, .*repair it"):
        policy(observation)
    with pytest.raises(diffcps.UserError, match=f"the observation has {text} at dimension 2"):
        policy(np.array([0.0, 0.0, number]))
    observation[1, 2, 0] = 0.0
    assert np.isfinite(policy(observation)).all()


def test_few_sizes_are_compiled(policy):
    for size in range(1, 18):
        assert policy(np.zeros((size, 3))).shape == (size, 2)
    assert policy(np.zeros(3)).shape == (2,) and policy(np.zeros((0, 3))).shape == (0, 2)
    assert policy._act._cache_size() == 6  # pyright: ignore; for 1, 2, 4, 8, 16 and 32 rows


def test_who_remembers_nothing_acts_as_ever_in_an_episode(policy):
    assert policy.episode() is policy


def test_what_is_filled_up_changes_no_row(folder):
    """The draws of this method go by the row, so that 3 rows are the first of 4."""
    rows = np.random.default_rng(0).normal(size=(4, 3))
    of_three, of_four = (diffcps.load_policy(folder, "last")(rows[:count]) for count in (3, 4))
    np.testing.assert_allclose(of_three, of_four[:3], rtol=0, atol=1e-6)


def test_a_pickle_has_the_place_of_the_policy_and_no_arrays(policy, monkeypatch, tmp_path):
    observation = np.ones(3)
    policy(observation)
    content = pickle.dumps(policy)
    assert len(content) < 1000 and b"numpy" not in content and b"jax" not in content
    monkeypatch.chdir(tmp_path)  # a relative place would be lost
    again, copied = pickle.loads(content), copy.deepcopy(policy)
    expected = policy(observation)
    assert again.member == policy.member
    np.testing.assert_array_equal(again(observation), expected)  # its second call, too
    np.testing.assert_array_equal(copied(observation), expected)


def test_a_policy_travels_to_another_process(policy):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (there,) = pool.map(policy, [np.ones(3)])
    assert there.shape == (2,)
    np.testing.assert_allclose(policy(np.ones(3)), there, rtol=0, atol=1e-4)


def test_threads_never_share_a_draw(policy, folder):
    alone = diffcps.load_policy(folder, "selected", member=1, seed=5)
    with ThreadPoolExecutor(8) as pool:
        actions = np.array(list(pool.map(policy, [np.zeros(3)] * 64)))
    expected = np.array([alone(np.zeros(3)) for _ in range(64)])
    np.testing.assert_array_equal(np.sort(actions, axis=0), np.sort(expected, axis=0))


def test_a_policy_of_no_folder_cannot_be_pickled(policy):
    scaling = Scaling.of(random_dataset().info)
    algorithm = diffusion_bc.make(diffusion_bc.Config(width=8, depth=1, num_steps=2), SPEC)
    homeless = Policy(algorithm, policy._state, scaling, SPEC, policy.member)
    with pytest.raises(diffcps.UserError, match=r"only a loaded one can be pickled: .*diffcps.load_policy\(folder\)"):
        pickle.dumps(homeless)


def test_an_unknown_checkpoint(folder):
    with pytest.raises(diffcps.UserError, match="no checkpoint 'offline_selected': take best, selected"):
        checkpoint_path(RunFolder(folder), "offline_selected")
