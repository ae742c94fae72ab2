"""Muon: what its steps are, against singular values and a plain reimplementation."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from training.muon import Muon, orthogonalised

SHAPES = [(24, 24), (16, 60), (60, 16)]


def matrix(shape: tuple[int, int], values: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix of the given singular values with its left and right singular vectors, as columns."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(side, len(values))))[0] for side in shape)
    return left * values @ right.T, left, right


# --- orthogonalisation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_singular_values_come_near_one_and_singular_vectors_stay(shape, scale):
    values = np.geomspace(0.05, 1, min(shape)).tolist()
    source, left, right = matrix(shape, values)
    result = orthogonalised(torch.tensor(scale * source, dtype=torch.float32)).double().numpy()
    assert result.shape == shape
    # In the source's own singular vectors the result is diagonal, and nothing of it is outside them.
    inside = left.T @ result @ right
    assert inside.diagonal().min() > 0.65 and inside.diagonal().max() < 1.25
    np.testing.assert_allclose(inside - np.diag(inside.diagonal()), 0, atol=1e-4)
    np.testing.assert_allclose(left @ inside @ right.T, result, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_directions_that_a_matrix_lacks_are_not_invented(shape):
    source, left, right = matrix(shape, [2.0, 1.0, 0.5])
    result = orthogonalised(torch.tensor(source, dtype=torch.float32)).double().numpy()
    found = np.linalg.svd(result, compute_uv=False)
    assert np.all((found[:3] > 0.65) & (found[:3] < 1.25)), found[:3]
    assert found[3:].max() < 1e-3
    assert np.all((left.T @ result @ right).diagonal() > 0.65), "the three are the source's own"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zeros_stay_zeros(shape):
    assert torch.equal(orthogonalised(torch.zeros(shape)), torch.zeros(shape))


def test_the_matrix_that_is_given_is_not_altered():
    source = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    before = source.clone()
    orthogonalised(source)
    assert torch.equal(source, before)


# --- steps ---------------------------------------------------------------------------------------------------------


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (8, 16, 3, 3), (64, 64, 3, 3), (40, 7)], ids=str)
@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_a_step_has_the_root_mean_square_of_one_of_adams(shape, size):
    """0.2 of the learning rate, whatever the gradient's size."""
    parameter = torch.nn.Parameter(torch.zeros(shape))
    parameter.grad = size * drawn(*shape)
    Muon([parameter], lr=0.01).step()
    assert 0.7 < parameter.square().mean().sqrt().item() / (0.2 * 0.01) < 1.2


def plain_muon(start: np.ndarray, gradients: list[np.ndarray], lr: float, momentum: float) -> np.ndarray:
    """As Jordan et al. and Liu et al. write it down, in double precision."""
    weights, mean = start.astype(np.float64), np.zeros(start.shape)
    for gradient in gradients:
        mean = momentum * mean + (1 - momentum) * gradient
        ahead = momentum * mean + (1 - momentum) * gradient
        x = ahead.reshape(len(ahead), -1)
        rows, columns = x.shape
        x = x / np.sqrt((x**2).sum())
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
        weights = weights - lr * 0.2 * np.sqrt(max(rows, columns)) * x.reshape(start.shape)
    return weights


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (6, 2, 1, 1)], ids=["wide", "tall"])
@pytest.mark.parametrize("momentum", [0.95, 0.5, 0.0])
def test_steps_are_those_of_the_plain_formula(shape, momentum):
    parameter = torch.nn.Parameter(drawn(*shape, seed=9))
    gradients = [drawn(*shape, seed=seed) for seed in range(4)]
    expected = plain_muon(
        parameter.detach().numpy(), [gradient.double().numpy() for gradient in gradients], 0.1, momentum
    )
    optimizer = Muon([parameter], lr=0.1, momentum=momentum)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=1e-4)
    assert torch.equal(parameter.grad, gradients[-1]), "the gradient is only read"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_saved_and_loaded_it_goes_on_bit_for_bit(memory_format):
    def fresh() -> tuple[torch.nn.Parameter, Muon]:
        parameter = torch.nn.Parameter(drawn(8, 6, 3, 3).to(memory_format=memory_format))
        return parameter, Muon([{"params": [parameter], "factor": 3.0}], lr=0.02)

    def step(parameter: torch.nn.Parameter, optimizer: Muon, seed: int) -> None:
        parameter.grad = drawn(8, 6, 3, 3, seed=seed).to(memory_format=memory_format)
        optimizer.step()

    whole, broken = fresh(), fresh()
    for seed in range(3):
        step(*whole, seed)
        step(*broken, seed)
    file = io.BytesIO()
    torch.save((broken[0].detach(), broken[1].state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    parameter, optimizer = fresh()
    parameter.data.copy_(weights)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["factor"] == 3.0
    for seed in range(3, 6):
        step(*whole, seed)
        step(parameter, optimizer, seed)
    assert torch.equal(parameter, whole[0])
    assert not torch.equal(parameter, weights)


def test_a_parameter_without_a_gradient_stays():
    still, moved = torch.nn.Parameter(drawn(4, 4)), torch.nn.Parameter(drawn(4, 4))
    optimizer = Muon([still, moved], lr=0.1)
    moved.grad = drawn(4, 4, seed=1)
    optimizer.step()
    assert torch.equal(still, drawn(4, 4)) and not torch.equal(moved, drawn(4, 4))
    assert still not in optimizer.state
